"""Runs a benchmark of one loaded model under one protocol: measures every sample, keeps the run folder, sums up."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from unfuse.measure.ceilings import measure_ceilings
from unfuse.measure.clock import edge_cost_ms, resolution_ns, settled_heap
from unfuse.measure.environment import environment
from unfuse.measure.timers import timer_for
from unfuse.protocols.decoupled import DECOUPLED
from unfuse.protocols.fused import FUSED
from unfuse.protocols.hooked import HOOKED
from unfuse.protocols.pairs import Pairs
from unfuse.protocols.pictures import keep_frames
from unfuse.protocols.probing import calls_after_encode, stage_memory
from unfuse.protocols.protocol import BenchProtocol
from unfuse.protocols.reencode import REENCODE
from unfuse.protocols.settings import BenchSettings
from unfuse.report import Summary, report_markdown, summarise
from unfuse.report.reading import run_of
from unfuse.runs import Manifest, Probes, RunFolder, SampleRecord
from unfuse.runs.frames import FRAMES_FOLDER, FrameStore
from unfuse.samples import Dataset
from unfuse.staged_model import StagedModel

PROTOCOLS: Final = {protocol.name: protocol for protocol in (DECOUPLED, HOOKED, FUSED, REENCODE)}
"""In the order in which ``all`` runs them."""

OnRecord = Callable[[int, SampleRecord], None]


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
            _finish(folder, self.manifest, self.probes, self.result)


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
        frames: where small pictures of the samples are kept; in ``output`` by default, nowhere without it.

    Raises:
        CutError: the protocol needs stages or a tower that this model does not show.
        RunFolderError: the folder is taken, or belongs to another run.
    """
    how = PROTOCOLS[protocol]
    require(how, model)
    pairs = Pairs(how, model, timer_for(model.device), settings)
    manifest = make_manifest(model, dataset, settings, command, protocol)
    with ExitStack() as stack:
        stack.enter_context(settled_heap())
        folder = None
        if output is not None:
            start = RunFolder.resume if resume else RunFolder.create
            folder = stack.enter_context(start(output, manifest))
            manifest = folder.manifest
        records = folder.records() if folder else []
        done = {record.sample_id for record in records if not record.warmup}
        for index, sample in enumerate(dataset.samples):
            if sample.sample_id in done:
                continue
            for record in pairs.measure(sample):
                if folder:
                    folder.append(record)
                records.append(record)
                if on_record:
                    on_record(index, record)
        probes = folder.read_probes() if folder else None
        if probes is None:
            probes = _probes(pairs, model, dataset, records, settings)
        if folder:
            keep_frames(model, dataset, records, frames or FrameStore(folder.path / FRAMES_FOLDER))
        result = summarise(manifest, records, probes)
        if folder:
            _finish(folder, manifest, probes, result)
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
        model=_about(model),
        dataset={"path": dataset.name, "sha256": dataset.sha256(), "num_samples": len(dataset.samples)},
        environment=environment(model.device),
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


def _about(model: StagedModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "family": model.family,
        "fingerprint": model.fingerprint,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "engine": model.engine.name,
        "notes": list(model.notes),
    }


def _probes(
    pairs: Pairs, model: StagedModel, dataset: Dataset, records: list[SampleRecord], settings: BenchSettings
) -> Probes:
    ok = {record.sample_id for record in records if record.status == "ok"}
    sample = next((sample for sample in dataset.samples if sample.sample_id in ok), None)
    if sample is None:
        return Probes()
    noise = pairs.noise(sample) if settings.noise_repeats else None
    memory, source = stage_memory(pairs.protocol, model, sample, settings)
    staged_vision = pairs.protocol.name in ("decoupled", "reencode")
    calls = calls_after_encode(pairs.protocol, model, sample, settings) if staged_vision else None
    work, typical = {}, None
    if pairs.protocol.name == "decoupled":
        from unfuse.protocols.work import stage_work  # imports torch, which waits until the input is checked

        typical = _typical(records)
        found = next(sample for sample in dataset.samples if sample.sample_id == typical.sample_id)
        work = stage_work(model, found, typical.output_tokens or 0)
    return Probes(
        noise=noise,
        memory=memory,
        memory_source=source,
        encoder_calls_after_encode=calls,
        work=work,
        work_sample_id=typical.sample_id if typical else None,
        ceilings=measure_ceilings(model.device, model.dtype) if typical else None,
    )


def _typical(records: list[SampleRecord]) -> SampleRecord:
    """The measured one in the middle: the first and the last may be the odd ones."""
    measured = sorted((r for r in records if r.status == "ok" and not r.warmup), key=lambda r: r.total_host_ms)
    return measured[len(measured) // 2]


def _finish(folder: RunFolder, manifest: Manifest, probes: Probes, result: Summary) -> None:
    folder.write_probes(probes)
    folder.write_summary(result.to_dict())
    folder.write_report(report_markdown(manifest, result))
    from unfuse.report.html import report_html  # loads Altair, which waits until all is measured

    folder.write_page(report_html([run_of(manifest, folder.records(), probes, folder.path)]))
