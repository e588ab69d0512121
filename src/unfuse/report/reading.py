"""Runs from their folders, with everything that a page about them shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from unfuse.errors import RunFolderError
from unfuse.report.comparison import Part
from unfuse.report.summary import summarise
from unfuse.runs import Manifest, Probes, RunFolder, SampleRecord, read_comparison
from unfuse.runs.frames import FrameStore, frames_of
from unfuse.runs.manifest import COMPARISON_FILE
from unfuse.runs.verification_file import VerificationRecord, read_verification


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportRun:
    """One run, or why there is none, and what lies beside its records."""

    part: Part
    probes: Probes = field(default_factory=Probes)
    verification: VerificationRecord | None = None
    frames: FrameStore | None = None
    folder: Path | None = None


def read_runs(paths: Sequence[Path]) -> list[ReportRun]:
    """The runs in folders; a comparison stands for its parts. Runs of equal model and protocol get the folder's name.

    Raises:
        RunFolderError: a folder holds neither, or is damaged.
    """
    runs: list[ReportRun] = []
    for path in paths:
        runs += _parts(path) if (path / COMPARISON_FILE).is_file() else [_run(path)]
    return told_apart(runs)


def run_of(
    manifest: Manifest, records: Sequence[SampleRecord], probes: Probes | None, folder: Path | None = None
) -> ReportRun:
    """A run whose records are at hand.

    Args:
        manifest: of the run.
        records: all lines.
        probes: None where the run did not come so far.
        folder: where its strips and its verification lie; None for a run in memory.

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


def told_apart(runs: Sequence[ReportRun]) -> list[ReportRun]:
    """The same runs; the model's name says which run it is where one model was run twice under one protocol."""
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
