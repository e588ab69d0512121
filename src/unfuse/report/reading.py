"""Runs read from their folders, with everything that a page needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from unfuse.errors import RunFolderError
from unfuse.records import Manifest, Probes, RunFolder, SampleRecord, read_comparison
from unfuse.records.frames import FrameStore, frames_of
from unfuse.records.manifest import COMPARISON_FILE
from unfuse.records.verification_file import VerificationRecord, read_verification
from unfuse.report.comparison import Part
from unfuse.report.summary import summarise


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportRun:
    """One run, or the reason for its absence, with the files beside its records."""

    part: Part
    probes: Probes = field(default_factory=Probes)
    verification: VerificationRecord | None = None
    frames: FrameStore | None = None
    folder: Path | None = None


def read_runs(paths: Sequence[Path]) -> list[ReportRun]:
    """Read the runs in folders; a comparison is read as its parts. Equal names get the name of the folder.

    Raises:
        RunFolderError: a folder holds neither run nor comparison, or is damaged.
    """
    runs: list[ReportRun] = []
    for path in paths:
        runs += _parts(path) if (path / COMPARISON_FILE).is_file() else [_run(path)]
    return with_unique_names(runs)


def run_of(
    manifest: Manifest, records: Sequence[SampleRecord], probes: Probes | None, folder: Path | None = None
) -> ReportRun:
    """Return a run from records in memory.

    Args:
        manifest: of the run.
        records: all lines.
        probes: None for a run that was interrupted before.
        folder: folder of its strips and its verification; None for a run in memory.

    Raises:
        RunFolderError: a damaged verification.
    """
    part = Part(
        model=str(manifest.model.get("name", "unnamed")),
        protocol=manifest.protocol,
        manifest=manifest,
        records=tuple(records),
        summary=summarise(manifest, records, probes),
    )
    return ReportRun(
        part=part,
        probes=probes or Probes(),
        verification=read_verification(folder) if folder else None,
        frames=frames_of(folder) if folder else None,
        folder=folder,
    )


def with_unique_names(runs: Sequence[ReportRun]) -> list[ReportRun]:
    """Return the runs; if a model was run twice under one protocol, its name gets the name of the run."""
    seen = Counter((run.part.model, run.part.protocol) for run in runs)
    found = []
    for number, run in enumerate(runs, start=1):
        if seen[run.part.model, run.part.protocol] > 1:
            where = run.folder.name if run.folder else f"run {number}"
            run = replace(run, part=replace(run.part, model=f"{run.part.model} [{where}]"))
        found.append(run)
    still = Counter((run.part.model, run.part.protocol) for run in found)
    return [
        replace(run, part=replace(run.part, model=f"{run.part.model} {number}"))
        if still[run.part.model, run.part.protocol] > 1
        else run
        for number, run in enumerate(found, start=1)
    ]


def _run(path: Path) -> ReportRun:
    folder = RunFolder.open(path)
    return run_of(folder.manifest, folder.records(), folder.read_probes(), folder.path)


def _parts(path: Path) -> list[ReportRun]:
    runs = []
    for entry in read_comparison(path).parts:
        if Path(entry.folder).name != entry.folder:
            raise RunFolderError(
                str(path / COMPARISON_FILE), found=f"a part in {entry.folder!r}", expected="a folder's name"
            )
        if entry.status == "failed":
            error = entry.error or "no reason recorded"
            part = Part(model=entry.model, protocol=entry.protocol, error=error, refused=entry.refused)
            runs.append(ReportRun(part=part))
        elif entry.status == "pending" and not (path / entry.folder).is_dir():
            runs.append(ReportRun(part=Part(model=entry.model, protocol=entry.protocol, error="not run yet")))
        else:
            runs.append(_run(path / entry.folder))
    return runs
