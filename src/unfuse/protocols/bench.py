"""Runs a benchmark of one model: loads it, measures every sample, keeps the run folder, gives the summary."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unfuse.measure.clock import edge_cost_ms, resolution_ns, settled_heap
from unfuse.measure.environment import environment
from unfuse.measure.timers import timer_for
from unfuse.protocols.decoupled import Decoupled
from unfuse.protocols.settings import BenchSettings
from unfuse.report import Summary, report_markdown, summarise
from unfuse.runs import Manifest, Noise, RunFolder, SampleRecord
from unfuse.samples import Dataset
from unfuse.staged_model import StagedModel

OnRecord = Callable[[int, SampleRecord], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchRun:
    """A finished run."""

    manifest: Manifest
    records: tuple[SampleRecord, ...]
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
            _finish(folder, self.manifest, self.result)


def bench_model(
    model: StagedModel,
    dataset: Dataset,
    settings: BenchSettings,
    *,
    output: Path | None = None,
    resume: bool = False,
    command: tuple[str, ...] | None = None,
    on_record: OnRecord | None = None,
) -> BenchRun:
    """Measures every sample of a dataset on one loaded model.

    Args:
        model: loaded.
        dataset: its media have been checked.
        settings: options.
        output: run folder, written as the run goes on; None keeps the run in memory.
        resume: continue the run in ``output``.
        command: for the record; the process's own by default.
        on_record: called with the sample's index and record once it is safe.

    Raises:
        RunFolderError: the folder is taken, or belongs to another run.
    """
    timer = timer_for(model.device)
    manifest = make_manifest(model, dataset, settings, command)
    protocol = Decoupled(model, timer, settings)
    with ExitStack() as stack:
        stack.enter_context(settled_heap())
        folder = None
        if output is not None:
            start = RunFolder.resume if resume else RunFolder.create
            folder = stack.enter_context(start(output, manifest))
        records = folder.records() if folder else []
        done = {record.sample_id for record in records if not record.warmup}
        for index, sample in enumerate(dataset.samples):
            if sample.sample_id in done:
                continue
            for record in protocol.measure(sample):
                if folder:
                    folder.append(record)
                records.append(record)
                if on_record:
                    on_record(index, record)
        result = summarise(manifest, records, _noise(protocol, dataset, records, settings))
        if folder:
            _finish(folder, manifest, result)
    return BenchRun(manifest=manifest, records=tuple(records), result=result, folder=output)


def make_manifest(
    model: StagedModel, dataset: Dataset, settings: BenchSettings, command: tuple[str, ...] | None = None
) -> Manifest:
    """Everything that a run depends on, taken before it starts."""
    now = datetime.now(UTC)
    timer = timer_for(model.device)
    return Manifest(
        run_id=f"{now:%Y%m%dT%H%M%S}-{Path(model.name).name.replace(':', '-')}",
        created=now.isoformat(timespec="seconds"),
        command=command or _command(),
        protocol=Decoupled.name,
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


def _command() -> tuple[str, ...]:
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
        "notes": list(model.adapter.notes),
    }


def _noise(protocol: Decoupled, dataset: Dataset, records: list[SampleRecord], settings: BenchSettings) -> Noise | None:
    ok = {record.sample_id for record in records if record.status == "ok"}
    sample = next((sample for sample in dataset.samples if sample.sample_id in ok), None)
    return protocol.noise(sample) if sample is not None and settings.noise_repeats else None


def _finish(folder: RunFolder, manifest: Manifest, result: Summary) -> None:
    folder.write_summary(result.to_dict())
    folder.write_report(report_markdown(manifest, result))
