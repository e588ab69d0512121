"""Measure several models, or one under several protocols, on the same samples: one loaded at a time.

Later failures do not affect a finished run. A model that fails to load, or fails while it runs, leaves its reason in
the report; the other models keep their results.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unfuse.benchmarking.bench import BenchRun, bench_model, read_run
from unfuse.benchmarking.manifest import describe_model, own_command
from unfuse.benchmarking.options import RunOptions
from unfuse.benchmarking.settings import BenchSettings
from unfuse.benchmarking.setup import FAILURES
from unfuse.errors import CutError, RunFolderError
from unfuse.loading import Placement
from unfuse.measure.environment import code_version
from unfuse.records import ComparisonFolder
from unfuse.records.frames import FRAMES_FOLDER, FrameStore
from unfuse.report import Comparison, Part, compare, comparison_markdown
from unfuse.report.reading import ReportRun, run_of, with_unique_names
from unfuse.samples import Dataset
from unfuse.staged_model import StagedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    """Models by name, and how to load each."""

    names: tuple[str, ...]
    load: Callable[[str], StagedModel]
    """Returns the loaded model of a name."""
    placement: Placement = field(default_factory=Placement)
    """Device, dtype and engine; they must be equal in a resumed comparison."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartRun:
    """One model under one protocol: its run, or the reason why there is none."""

    model: str
    protocol: str
    run: BenchRun | None = None
    error: str | None = None
    refused: bool = False
    """Whether this protocol cannot measure the model at all."""

    def for_report(self) -> Part:
        """Return the part for the report."""
        if self.run is None:
            return Part(model=self.model, protocol=self.protocol, error=self.error, refused=self.refused)
        return Part(
            model=self.model,
            protocol=self.protocol,
            manifest=self.run.manifest,
            records=self.run.records,
            summary=self.run.result,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparisonRun:
    """Several finished runs."""

    command: tuple[str, ...]
    asked: Mapping[str, Any]
    """Options, dataset, placement and code, shared by all parts."""
    runs: tuple[PartRun, ...]
    result: Comparison
    folder: Path | None = None

    def summary(self) -> Comparison:
        """Return ratios, differences, and the summary of every part."""
        return self.result

    def save(self, path: str | Path) -> None:
        """Write the folder of all runs.

        Raises:
            RunFolderError: the folder exists already or cannot be written.
        """
        names = [(part.model, part.protocol) for part in self.runs]
        with ComparisonFolder.create(path, names, common=self.asked, created=_now(), command=self.command) as folder:
            if self.folder is not None:
                FrameStore(folder.path / FRAMES_FOLDER).copy_from(FrameStore(self.folder / FRAMES_FOLDER))
            for index, part in enumerate(self.runs):
                if part.run is not None:
                    part.run.save(folder.run_folder(index))
                folder.note(index, "failed" if part.run is None else "ended", part.error, refused=part.refused)
            _write_results(folder, self.runs, self.result)


def bench_several(
    models: ModelSource,
    protocols: Sequence[str],
    dataset: Dataset,
    settings: BenchSettings,
    options: RunOptions | None = None,
) -> ComparisonRun:
    """Measure every model under every protocol.

    Args:
        models: each is loaded once, after the model before is released.
        protocols: in the order of their runs.
        dataset: its media have been checked.
        settings: shared by all runs.
        options: output folder of the runs, and listener to notify.

    Raises:
        RunFolderError: the folder exists already, or belongs to another comparison.
    """
    options = options or RunOptions()
    command = own_command()
    common = {
        "options": settings.to_config(),
        "dataset": dataset.sha256(),
        "placement": list(astuple(models.placement)),
        "code": code_version(),
    }
    parts = [(name, protocol) for name in models.names for protocol in protocols]
    with ExitStack() as stack:
        folder = None
        if options.output is not None:
            if options.resume:
                folder = ComparisonFolder.resume(options.output, parts, common=common)
            else:
                folder = ComparisonFolder.create(options.output, parts, common=common, created=_now(), command=command)
            stack.enter_context(folder)
        runs = _Comparison(models, dataset, settings, options, folder).run(protocols)
        result = compare([part.for_report() for part in runs])
        if folder is not None:
            _write_results(folder, runs, result)
    return ComparisonRun(command=command, asked=common, runs=tuple(runs), result=result, folder=options.output)


@dataclass(frozen=True, slots=True)
class _Comparison:
    models: ModelSource
    dataset: Dataset
    settings: BenchSettings
    options: RunOptions
    folder: ComparisonFolder | None

    def run(self, protocols: Sequence[str]) -> list[PartRun]:
        runs: list[PartRun] = []
        for name in self.models.names:
            indices = {protocol: len(runs) + i for i, protocol in enumerate(protocols)}
            finished: dict[str, PartRun] = {}
            for protocol, index in indices.items():
                if (run := self._finished_run(index)) is not None:
                    self.options.listener.part(name, protocol, "finished earlier")
                    finished[protocol] = PartRun(model=name, protocol=protocol, run=run)
            todo = {protocol: index for protocol, index in indices.items() if protocol not in finished}
            finished |= self._measure_model(name, todo, [part.run for part in finished.values() if part.run])
            runs += [finished[protocol] for protocol in protocols]
        return runs

    def _finished_run(self, index: int) -> BenchRun | None:
        """Read the run of a part that finished in an earlier process."""
        if self.folder is None or self.folder.manifest.parts[index].status != "ended":
            return None
        return read_run(self.folder.run_folder(index))

    def _measure_model(self, name: str, indices: dict[str, int], earlier: Sequence[BenchRun]) -> dict[str, PartRun]:
        """Load a model, measure it under every protocol, and release it.

        Raises:
            RunFolderError: the model is not the model of the finished runs.
        """
        try:
            model = self.models.load(name)
        except FAILURES as error:
            if earlier:  # nothing shows that the finished runs are of this model
                raise
            return {protocol: self._failed(name, protocol, index, error) for protocol, index in indices.items()}
        finished: dict[str, PartRun] = {}
        with model:
            _require_same_model(model, earlier)
            for protocol, index in indices.items():
                try:
                    self.options.listener.part(name, protocol, "measuring")
                    run = self._measure_part(model, protocol, index)
                    finished[protocol] = PartRun(model=name, protocol=protocol, run=run)
                except FAILURES as error:
                    finished[protocol] = self._failed(name, protocol, index, error)
        del model
        _release_memory()
        return finished

    def _measure_part(self, model: StagedModel, protocol: str, index: int) -> BenchRun:
        if self.folder is None:
            return bench_model(model, self.dataset, self.settings, self.options, protocol=protocol)
        output = self.folder.run_folder(index)
        frames = FrameStore(self.folder.path / FRAMES_FOLDER)
        options = replace(self.options, output=output, resume=output.exists(), frames=frames)
        run = bench_model(model, self.dataset, self.settings, options, protocol=protocol)
        self.folder.note(index, "ended")
        return run

    def _failed(self, name: str, protocol: str, index: int, error: BaseException) -> PartRun:
        reason = " ".join(str(error).split()) or type(error).__name__
        refused = isinstance(error, CutError)
        outcome = "cannot be measured this way" if refused else "FAILED"
        self.options.listener.part(name, protocol, f"{outcome}: {reason}")
        if self.folder:
            self.folder.note(index, "failed", reason, refused=refused)
        return PartRun(model=name, protocol=protocol, error=reason, refused=refused)


def _require_same_model(model: StagedModel, earlier: Sequence[BenchRun]) -> None:
    """Refuse finished runs of other weights: their files may have changed since.

    Raises:
        RunFolderError: names the first difference.
    """
    now = describe_model(model)
    for run in earlier:
        for name in ("fingerprint", "settings_sha256", "dtype", "device", "engine"):
            if (before := run.manifest.model.get(name)) != now[name]:
                raise RunFolderError(
                    f"run folder {run.folder}",
                    found=f"a run of another model {model.name} ({name}: recorded {before}, now {now[name]})",
                    expected="the same model",
                    fix="undo the change or give another --output",
                )


def _write_results(folder: ComparisonFolder, runs: Sequence[PartRun], result: Comparison) -> None:
    from unfuse.report.html import report_html  # loads Altair, so it waits until all is measured

    reported = []
    for index, part in enumerate(runs):
        if part.run is None:
            reported.append(ReportRun(part=part.for_report()))
        else:
            reported.append(run_of(part.run.manifest, part.run.records, part.run.probes, folder.run_folder(index)))
    command = folder.manifest.command
    page = report_html(with_unique_names(reported), command=command)
    folder.finish(result.to_dict(), comparison_markdown(result, command), page)


def _release_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
