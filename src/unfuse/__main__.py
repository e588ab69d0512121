"""``unfuse``, and ``python -m unfuse``: the command line. Loading it takes a second and may be interrupted."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the ``unfuse`` command."""
    try:
        from unfuse.cli.interrupts import interruptible

        with interruptible():
            from unfuse.cli import main as command_line

            command_line()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
