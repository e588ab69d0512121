"""Committed runs as directives read them: from the records, so that a page is never older than its run."""

from __future__ import annotations

from pathlib import Path

from unfuse.report import Summary, summarise
from unfuse.runs import Manifest, RunFolder, SampleRecord


def read(folder: Path) -> tuple[Manifest, list[SampleRecord], Summary]:
    """A run that has ended.

    Raises:
        RunFolderError: there is none, or it is damaged.
    """
    run = RunFolder.open(folder)
    records = run.records()
    return run.manifest, records, summarise(run.manifest, records, run.read_probes())


def files_of(folder: Path) -> list[Path]:
    """What a page depends on that shows the run."""
    return sorted(path for path in folder.rglob("*.json*") if path.is_file())
