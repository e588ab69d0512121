"""Makes an instruction-set folder of N rows from a few recordings, each used in turn, for a timed run.

python benchmarks/make_rows.py OUT --count 20 recording.npy ...
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from unfuse.samples.dataset import MANIFEST_NAME


def main() -> None:
    """Copies the recordings and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("recordings", type=Path, nargs="+")
    parser.add_argument("--count", type=int, default=20)
    arguments = parser.parse_args()
    folder = arguments.out / "event_npy" / "rows"
    folder.mkdir(parents=True)
    for recording in arguments.recordings:
        shutil.copyfile(recording, folder / recording.name)
    chosen = [arguments.recordings[i % len(arguments.recordings)] for i in range(arguments.count)]
    rows = [
        {"id": f"{i:03d}-{recording.stem}", "event_data": f"rows/{recording.name}", "conversations": []}
        for i, recording in enumerate(chosen)
    ]
    (arguments.out / MANIFEST_NAME).write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
