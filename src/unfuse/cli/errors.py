"""Exit of a command: bad input gives one line on stderr and an exit code, never a traceback.

0 done; 1 a check or verdict failed; 2 usage or bad input.
"""

from __future__ import annotations

from collections.abc import Sequence

import click

from unfuse.cli.interrupts import EXIT_CODE, on_interrupt, say_interrupted
from unfuse.errors import as_ours


def exit_code_of(command: click.Command, arguments: Sequence[str] | None, name: str) -> int:
    """Run a command and return its exit code."""
    on_interrupt(None)
    try:
        code = command.main(args=arguments, prog_name=name, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as help_wanted:
        click.echo(help_wanted.format_message())
        return 2
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        click.echo(f"error: {' '.join(error.format_message().split())}", err=True)
        return 2
    except (click.Abort, KeyboardInterrupt):
        say_interrupted()
        return EXIT_CODE
    except Exception as error:
        ours = as_ours(error)
        if ours is None:
            raise
        click.echo(f"error: {ours}", err=True)
        return ours.exit_code
    return code if isinstance(code, int) else 0
