"""Runs a benchmark of one loaded model under one protocol: measures every sample, keeps the run folder, sums up."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from unfuse.errors import VerificationError
from unfuse.measure.clock import edge_cost_ms, resolution_ns, settled_heap, zero_of
from unfuse.measure.environment import environment
from unfuse.measure.isolation import IsolationGuard, guard_for
from unfuse.measure.timers import timer_for
from unfuse.protocols.decoupled import DECOUPLED
from unfuse.protocols.fused import FUSED
from unfuse.protocols.hooked import HOOKED
from unfuse.protocols.pairs import Pairs
from unfuse.protocols.pictures import keep_frames
from unfuse.protocols.probing import Prober
from unfuse.protocols.protocol import BenchProtocol
from unfuse.protocols.reencode import REENCODE
from unfuse.protocols.settings import BenchSettings
from unfuse.report import Summary, report_markdown, summarise, trace_text
from unfuse.report.reading import run_of
from unfuse.runs import Isolation, Manifest, Probes, RunFolder, SampleRecord
from unfuse.runs.frames import FRAMES_FOLDER, FrameStore
from unfuse.samples import Dataset
from unfuse.staged_model import StagedModel

PROTOCOLS: Final = {protocol.name: protocol for protocol in (DECOUPLED, HOOKED, FUSED, REENCODE)}
"""In the order in which ``all`` runs them."""

OnRecord = Callable[[int, SampleRecord], None]
OnWarning = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchRun:
    """A finished run."""

    manifest: Manifest
    records: tuple[SampleRecord, ...]
    probes: Probes
    result: Summary
    folder: Path | None = None

    def summary(self) -> Summary:
        """Statistics and verdict."""
        return self.result

    def save(self, path: str | Path) -> None:
        """Writes the run folder.

        Raises:
            RunFolderError: the place is taken or cannot be written.
        """
        with RunFolder.create(path, self.manifest) as folder:
            for record in self.records:
                folder.append(record)
            if self.folder is not None:
                FrameStore(folder.path / FRAMES_FOLDER).take_over(FrameStore(self.folder / FRAMES_FOLDER))
            _finish(folder, self.manifest, self.records, self.probes, self.result)


def bench_model(
    model: StagedModel,
    dataset: Dataset,
    settings: BenchSettings,
    *,
    protocol: str = DECOUPLED.name,
    output: Path | None = None,
    resume: bool = False,
    command: tuple[str, ...] | None = None,
    on_record: OnRecord | None = None,
    on_warning: OnWarning | None = None,
    guard: IsolationGuard | None = None,
    frames: FrameStore | None = None,
) -> BenchRun:
    """Measures every sample of a dataset on one loaded model.

    Args:
        model: loaded.
        dataset: its media have been checked.
        settings: options.
        protocol: one of ``PROTOCOLS``.
        output: run folder, written as the run goes on; None keeps the run in memory.
        resume: continue the run in ``output``.
        command: for the record; the process's own by default.
        on_record: called with the sample's index and record once it is safe.
        on_warning: called with what is found at the start to be in the way.
        guard: looks whether the run has the machine to itself; that of the model's device by default.
        frames: where small pictures of the samples are kept; in ``output`` by default, nowhere without it.

    Raises:
        VerificationError: the machine is not free, and ``settings.strict``.
        CutError: the protocol needs stages or a tower that this model does not show.
        RunFolderError: the folder is taken, or belongs to another run.
    """
    how = PROTOCOLS[protocol]
    require(how, model)
    guard = guard or guard_for(model.device)
    first = guard.look_at_start()
    _tell(first, settings, on_warning)
    manifest = make_manifest(model, dataset, settings, command, protocol, isolation=first)
    with ExitStack() as stack:
        stack.enter_context(settled_heap())
        folder = None
        if output is not None:
            start = RunFolder.resume if resume else RunFolder.create
            folder = stack.enter_context(start(output, manifest))
            manifest = folder.manifest
        pairs = Pairs(how, model, timer_for(model.device), settings, zero_of(manifest.created))
        records = folder.records() if folder else []
        done = {record.sample_id for record in records if not record.warmup}
        before = [*_texts(first)] if resume else []  # a resumed run's manifest holds the first process's look
        for index, sample in enumerate(dataset.samples):
            if sample.sample_id in done:
                continue
            for record in _watched(pairs.measure(sample), guard, before):
                if folder:
                    folder.append(record)
                records.append(record)
                if on_record:
                    on_record(index, record)
        probes = folder.read_probes() if folder else None
        if probes is None:
            probes = Prober(pairs, model, dataset, settings, guard).probes(records, folder)
        if folder:
            keep_frames(model, dataset, records, frames or FrameStore(folder.path / FRAMES_FOLDER))
        result = summarise(manifest, records, probes)
        if folder:
            _finish(folder, manifest, records, probes, result)
    return BenchRun(manifest=manifest, records=tuple(records), probes=probes, result=result, folder=output)


def read_run(path: Path) -> BenchRun:
    """A run that has ended, from its folder.

    Raises:
        RunFolderError: there is none, or it is damaged.
    """
    folder = RunFolder.open(path)
    records, probes = folder.records(), folder.read_probes() or Probes()
    result = summarise(folder.manifest, records, probes)
    return BenchRun(manifest=folder.manifest, records=tuple(records), probes=probes, result=result, folder=path)


def require(protocol: BenchProtocol, model: StagedModel) -> None:
    """Refuses a protocol that a model cannot be measured under.

    Raises:
        CutError: with the reason.
    """
    if protocol.needs_cut:
        _ = model.adapter.language
    if protocol.needs_tower:
        model.adapter.vision_modules()


def make_manifest(
    model: StagedModel,
    dataset: Dataset,
    settings: BenchSettings,
    command: tuple[str, ...] | None = None,
    protocol: str = DECOUPLED.name,
    isolation: Isolation | None = None,
) -> Manifest:
    """Everything that a run depends on, taken before it starts."""
    now = datetime.now(UTC)
    timer = timer_for(model.device)
    return Manifest(
        run_id=f"{now:%Y%m%dT%H%M%S}-{Path(model.name).name.replace(':', '-')}",
        created=now.isoformat(timespec="seconds"),
        command=command or own_command(),
        protocol=protocol,
        config=asdict(settings),
        model=about(model),
        dataset={"path": dataset.name, "sha256": dataset.sha256(), "num_samples": len(dataset.samples)},
        environment={**environment(model.device), "isolation": isolation and asdict(isolation)},
        clock={
            "resolution_ns": resolution_ns(),
            "edge_cost_ms": edge_cost_ms(timer),
            "how": "median of empty stages on an idle device",
        },
    )


def own_command() -> tuple[str, ...]:
    """The process's own, with the program by name: its path says where it lies, not what was run."""
    program = Path(sys.argv[0]).name
    return ("unfuse" if program == "__main__.py" else program, *sys.argv[1:])


def about(model: StagedModel) -> dict[str, Any]:
    """A model as ``run.json`` has it."""
    return {
        "name": model.name,
        "family": model.family,
        "fingerprint": model.fingerprint,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "engine": model.engine.name,
        "notes": list(model.notes),
    }


def _tell(isolation: Isolation, settings: BenchSettings, on_warning: OnWarning | None) -> None:
    """Says what is in the way of a run that has not begun.

    Raises:
        VerificationError: anything is, and the run is to be strict.
    """
    found = _texts(isolation)
    if found and settings.strict:
        raise VerificationError(
            "isolation", found="; ".join(found), expected="a machine to itself", fix="free it, or run without --strict"
        )
    if on_warning is not None:
        for each in found:
            on_warning(f"not isolated: {each}")


def _watched(measured: Iterator[SampleRecord], guard: IsolationGuard, before: list[str]) -> Iterator[SampleRecord]:
    """Each record with what the guard saw since the one before; the first one takes what was seen ``before``."""
    for record in measured:
        found = _texts(guard.look())
        yield replace(record, disturbances=(*before, *found))
        before.clear()


def _texts(isolation: Isolation) -> tuple[str, ...]:
    return tuple(f"{each.rule}: {each.detail}" for each in isolation.findings)


def _finish(
    folder: RunFolder, manifest: Manifest, records: Sequence[SampleRecord], probes: Probes, result: Summary
) -> None:
    folder.write_probes(probes)
    folder.write_summary(result.to_dict())
    folder.write_report(report_markdown(manifest, result))
    folder.write_trace(trace_text(manifest, records, probes))
    from unfuse.report.html import report_html  # loads Altair, which waits until all is measured

    folder.write_page(report_html([run_of(manifest, records, probes, folder.path)]))
