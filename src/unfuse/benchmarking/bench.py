"""Measure one loaded model under one protocol: every sample, then probes, then the summary and the run folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from unfuse.benchmarking.drafting import sample_drafters
from unfuse.benchmarking.frame_strips import store_frames
from unfuse.benchmarking.manifest import make_manifest
from unfuse.benchmarking.options import BenchListener, RunOptions
from unfuse.benchmarking.pairs import Pairs
from unfuse.benchmarking.probing import Prober
from unfuse.benchmarking.protocols import DECOUPLED, PROTOCOLS
from unfuse.benchmarking.settings import BenchSettings
from unfuse.benchmarking.setup import BenchSetup
from unfuse.errors import VerificationError
from unfuse.measure.clock import settled_heap, zero_of
from unfuse.measure.isolation import IsolationGuard, guard_for
from unfuse.measure.timers import timer_for
from unfuse.records import Isolation, Manifest, Probes, RunFolder, SampleRecord
from unfuse.records.frames import FRAMES_FOLDER, FrameStore
from unfuse.records.inputs import RecordedInput, first_changed_input
from unfuse.records.run_dir import HTML_FILE, REPORT_FILE, TRACE_FILE
from unfuse.report import Summary, report_markdown, summarise, trace_text
from unfuse.report.reading import run_of
from unfuse.samples import Dataset, Question, clean_question
from unfuse.samples.inputs import present_inputs
from unfuse.staged_model import StagedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchRun:
    """A finished run."""

    manifest: Manifest
    records: tuple[SampleRecord, ...]
    probes: Probes
    result: Summary
    folder: Path | None = None

    def summary(self) -> Summary:
        """Return statistics and verdict."""
        return self.result

    def save(self, path: str | Path) -> None:
        """Write the run folder.

        Raises:
            RunFolderError: the folder exists already or cannot be written.
        """
        with RunFolder.create(path, self.manifest) as folder:
            for record in self.records:
                folder.append(record)
            if self.folder is not None:
                FrameStore(folder.path / FRAMES_FOLDER).copy_from(FrameStore(self.folder / FRAMES_FOLDER))
            _write_results(folder, self)


def bench_model(
    model: StagedModel,
    dataset: Dataset,
    settings: BenchSettings,
    options: RunOptions | None = None,
    *,
    protocol: str = DECOUPLED.name,
) -> BenchRun:
    """Measure every sample of a dataset on one loaded model.

    Args:
        model: loaded.
        dataset: its media have been checked.
        settings: stages and repeats to measure.
        options: output folder, and listener to notify.
        protocol: one of ``PROTOCOLS``.

    Raises:
        VerificationError: the machine is not free, and ``settings.strict``.
        CutError: the protocol needs stages or a tower that this model does not show.
        RunFolderError: the folder exists already, or belongs to another run.
    """
    options = options or RunOptions()
    PROTOCOLS[protocol].check(model)
    drafters, notes = sample_drafters(model, settings.speculation)
    model = model.with_drafter(None, notes)
    guard = options.guard or guard_for(model.device)
    isolation = guard.check_at_start()
    _report_isolation(isolation, settings, options.listener)
    manifest = make_manifest(model, dataset, settings, protocol, isolation)
    with ExitStack() as stack:
        stack.enter_context(settled_heap())
        folder = None
        if options.output is not None:
            resume = partial(RunFolder.resume, changed_input=partial(_changed_input, model, dataset))
            start = resume if options.resume else RunFolder.create
            folder = stack.enter_context(start(options.output, manifest))
            manifest = folder.manifest
        setup = BenchSetup(
            drafters=drafters,
            model=model,
            protocol=PROTOCOLS[protocol],
            settings=settings,
            timer=timer_for(model.device),
            zero_ns=zero_of(manifest.created),
        )
        pairs = Pairs(setup)
        # A resumed run's manifest holds the isolation of its first process; this one's goes into the next record.
        unreported = list(_describe(isolation)) if options.resume else []
        records = folder.records() if folder else []
        if drafters is not None:
            drafters.learn_all(records)
        done = {record.sample_id for record in records if not record.warmup}
        for index, sample in enumerate(dataset.samples):
            if sample.sample_id in done:
                continue
            for record in _with_disturbances(pairs.measure(sample), guard, unreported):
                if folder:
                    folder.append(record)
                records.append(record)
                options.listener.record(index, record)
        probes = folder.read_probes() if folder else None
        if probes is None:
            probes = Prober(pairs, dataset, guard).probes(records, folder)
        if folder:
            store_frames(model, dataset, records, options.frames or FrameStore(folder.path / FRAMES_FOLDER))
        run = _run(manifest, records, probes, options.output)
        if folder:
            _write_results(folder, run)
    return run


def _changed_input(model: StagedModel, dataset: Dataset, recorded: Mapping[str, RecordedInput]) -> str | None:
    rows = (
        (sample, Question(question_id=sample.sample_id, text=clean_question(sample.question)))
        for sample in dataset.samples
    )
    return first_changed_input(recorded, present_inputs(rows, model.media_sha256))


def read_run(path: Path) -> BenchRun:
    """Read a finished run from its folder.

    Raises:
        RunFolderError: there is none, or it is damaged.
    """
    folder = RunFolder.open(path)
    return _run(folder.manifest, folder.records(), folder.read_probes() or Probes(), path)


def _run(manifest: Manifest, records: Sequence[SampleRecord], probes: Probes, folder: Path | None) -> BenchRun:
    result = summarise(manifest, records, probes)
    return BenchRun(manifest=manifest, records=tuple(records), probes=probes, result=result, folder=folder)


def _report_isolation(isolation: Isolation, settings: BenchSettings, listener: BenchListener) -> None:
    """Warn of everything that shares the machine with a run that has not started.

    Raises:
        VerificationError: something does, and the run is to be strict.
    """
    found = _describe(isolation)
    if found and settings.strict:
        raise VerificationError(
            "isolation", found="; ".join(found), expected="a machine to itself", fix="free it, or run without --strict"
        )
    for text in found:
        listener.warning(f"not isolated at the start: {text}")


def _with_disturbances(
    measured: Iterator[SampleRecord], guard: IsolationGuard, unreported: list[str]
) -> Iterator[SampleRecord]:
    """Yield each record with the guard's findings since the record before; the first also takes ``unreported``."""
    for record in measured:
        yield replace(record, disturbances=(*unreported, *_describe(guard.check())))
        unreported.clear()


def _describe(isolation: Isolation) -> tuple[str, ...]:
    return tuple(f"{finding.rule}: {finding.detail}" for finding in isolation.findings)


def _write_results(folder: RunFolder, run: BenchRun) -> None:
    from unfuse.report.html import report_html  # loads Altair, so it waits until all is measured

    manifest, records, probes = run.manifest, run.records, run.probes
    folder.write_probes(probes)
    folder.write_summary(run.result.to_dict())
    folder.write_text(REPORT_FILE, report_markdown(manifest, run.result))
    folder.write_text(TRACE_FILE, trace_text(manifest, records, probes))
    folder.write_text(HTML_FILE, report_html([run_of(manifest, records, probes, folder.path)]))
