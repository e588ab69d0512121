"""Where a run may be made, and how one that never began is taken away again."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from unfuse.errors import RunFolderError
from unfuse.runs.answers_file import ANSWERS_FILE
from unfuse.runs.atomic import cannot_write
from unfuse.runs.lock import LOCK_FILE
from unfuse.runs.manifest import COMPARISON_FILE, MANIFEST_FILE
from unfuse.runs.samples_file import SAMPLES_FILE

SUMMARY_FILE: Final = "summary.json"
REPORT_FILE: Final = "report.md"
HTML_FILE: Final = "report.html"
PROBES_FILE: Final = "probes.json"
TRACE_FILE: Final = "trace.json"
PROFILE_FILE: Final = "profile.json"
_OWN_FILES: Final = (
    MANIFEST_FILE,
    SAMPLES_FILE,
    ANSWERS_FILE,
    PROBES_FILE,
    SUMMARY_FILE,
    REPORT_FILE,
    HTML_FILE,
    TRACE_FILE,
    PROFILE_FILE,
    LOCK_FILE,
)


def refuse_occupied(path: str | Path) -> None:
    """Passes where a run can be made: nothing is there, or an empty folder.

    Raises:
        RunFolderError: the folder holds a run or other files, or is no folder.
    """
    try:
        names = os.listdir(path)  # noqa: PTH208 - Path.iterdir is lazy; a file at ``path`` must be refused here
    except FileNotFoundError:
        return
    except OSError as error:
        raise cannot_write(Path(path), error) from error
    if not names:
        return
    holds_run = MANIFEST_FILE in names or COMPARISON_FILE in names
    raise RunFolderError(
        f"run folder {path}",
        found="a run" if holds_run else "files that are no run",
        expected="a new or empty folder",
        fix="continue it with --resume or give another --output" if holds_run else "give another --output",
    )


def take_away(run: Path, *parents: Path) -> None:
    """Removes a run's own files, its folder and the folders made for it; a folder with other files stays."""
    for name in _OWN_FILES:
        with suppress(OSError):
            (run / name).unlink()
    for folder in (run, *parents):
        with suppress(OSError):
            folder.rmdir()
