"""Read committed runs from their records, so that a page is never older than its run."""

from __future__ import annotations

from pathlib import Path

from unfuse.records import Manifest, RunFolder, SampleRecord
from unfuse.report import Summary, summarise


def read(folder: Path) -> tuple[Manifest, list[SampleRecord], Summary]:
    """Read a finished run.

    Raises:
        RunFolderError: there is none, or it is damaged.
    """
    run = RunFolder.open(folder)
    records = run.records()
    return run.manifest, records, summarise(run.manifest, records, run.read_probes())


def files_of(folder: Path) -> list[Path]:
    """Return the files on which a page with the run depends."""
    return sorted(path for path in folder.rglob("*.json*") if path.is_file())
