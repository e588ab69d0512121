"""Several models, or one under several protocols, on the same samples: one loaded at a time.

What has ended is kept whatever comes later: a model that fails to load, or fails while it runs, leaves its reason in
the report and the others their results.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unfuse.errors import CutError, UnfuseError
from unfuse.loading import Placement
from unfuse.measure.environment import code_version
from unfuse.protocols.bench import BenchRun, OnRecord, OnWarning, bench_model, own_command, read_run
from unfuse.protocols.settings import BenchSettings
from unfuse.report import Comparison, Part, compare, comparison_markdown
from unfuse.report.reading import ReportRun, run_of, told_apart
from unfuse.runs import ComparisonFolder
from unfuse.runs.frames import FRAMES_FOLDER, FrameStore
from unfuse.samples import Dataset
from unfuse.staged_model import StagedModel

Load = Callable[[str], StagedModel]
_FAILURES = (UnfuseError, OSError, RuntimeError, MemoryError)
OnPart = Callable[[str, str, str], None]
"""Called with model, protocol and what happens to it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartRun:
    """One model under one protocol: its run, or why there is none."""

    model: str
    protocol: str
    run: BenchRun | None = None
    error: str | None = None
    refused: bool = False
    """Whether the model cannot be measured this way at all."""

    def for_report(self) -> Part:
        """What a report needs of it."""
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
    """What all parts have in common: options, data, placement, code."""
    runs: tuple[PartRun, ...]
    result: Comparison
    folder: Path | None = None

    def summary(self) -> Comparison:
        """Ratios, differences, and every part's own summary."""
        return self.result

    def save(self, path: str | Path) -> None:
        """Writes the folder of all runs.

        Raises:
            RunFolderError: the place is taken or cannot be written.
        """
        names = [(part.model, part.protocol) for part in self.runs]
        folder = ComparisonFolder.create(path, names, asked=self.asked, created=_now(), command=self.command)
        if self.folder is not None:
            FrameStore(folder.path / FRAMES_FOLDER).take_over(FrameStore(self.folder / FRAMES_FOLDER))
        for index, part in enumerate(self.runs):
            if part.run is not None:
                part.run.save(folder.run_folder(index))
            folder.note(index, "failed" if part.run is None else "ended", part.error, refused=part.refused)
        _finish(folder, self.runs, self.result)


def bench_several(
    models: Sequence[str],
    protocols: Sequence[str],
    load: Load,
    dataset: Dataset,
    settings: BenchSettings,
    *,
    placement: Placement | None = None,
    output: Path | None = None,
    resume: bool = False,
    command: tuple[str, ...] | None = None,
    on_part: OnPart | None = None,
    on_record: OnRecord | None = None,
    on_warning: OnWarning | None = None,
) -> ComparisonRun:
    """Measures every model under every protocol.

    Args:
        models: names; each is loaded once, after the one before is gone.
        protocols: in the order in which they are run.
        load: from a name to a loaded model.
        dataset: its media have been checked.
        settings: the same for all.
        placement: where the models are loaded, which a resumed comparison must share.
        output: folder of all runs, written as they go on; None keeps them in memory.
        resume: continue what lies in ``output``.
        command: for the record; the process's own by default.
        on_part: called when a part begins, is kept, or fails.
        on_record: as for ``bench_model``.
        on_warning: as for ``bench_model``.

    Raises:
        RunFolderError: the folder is taken, or belongs to another comparison.
    """
    parts = [(model, protocol) for model in models for protocol in protocols]
    command = command or own_command()
    asked = {
        "options": asdict(settings),
        "dataset": dataset.sha256(),
        "placement": list(astuple(placement or Placement())),
        "code": code_version(),
    }
    folder = None
    if output is not None:
        if resume:
            folder = ComparisonFolder.resume(output, parts, asked=asked)
        else:
            folder = ComparisonFolder.create(output, parts, asked=asked, created=_now(), command=command)
    several = _Several(load, dataset, settings, folder, on_part or (lambda *_: None), on_record, on_warning)
    runs = several.run(models, protocols)
    result = compare([part.for_report() for part in runs])
    if folder is not None:
        _finish(folder, runs, result)
    return ComparisonRun(command=command, asked=asked, runs=tuple(runs), result=result, folder=output)


@dataclass(slots=True)
class _Several:
    load: Load
    dataset: Dataset
    settings: BenchSettings
    folder: ComparisonFolder | None
    tell: OnPart
    on_record: OnRecord | None
    on_warning: OnWarning | None

    def run(self, models: Sequence[str], protocols: Sequence[str]) -> list[PartRun]:
        runs: list[PartRun] = []
        for name in models:
            indices = {protocol: len(runs) + i for i, protocol in enumerate(protocols)}
            done: dict[str, PartRun] = {}
            for protocol, index in indices.items():
                if (run := self._ended(index)) is not None:
                    self.tell(name, protocol, "ended before; kept")
                    done[protocol] = PartRun(model=name, protocol=protocol, run=run)
            if todo := {protocol: index for protocol, index in indices.items() if protocol not in done}:
                done |= self._model(name, todo)
            runs += [done[protocol] for protocol in protocols]
        return runs

    def _ended(self, index: int) -> BenchRun | None:
        """The run of a part that came to its end before."""
        if self.folder is None or self.folder.manifest.parts[index].status != "ended":
            return None
        return read_run(self.folder.run_folder(index))

    def _model(self, name: str, indices: dict[str, int]) -> dict[str, PartRun]:
        """Loads a model, measures it, and lets it go."""
        try:
            self.tell(name, "", "loading")
            model = self.load(name)
        except _FAILURES as error:
            return {protocol: self._failed(name, protocol, index, error) for protocol, index in indices.items()}
        done: dict[str, PartRun] = {}
        with model:
            for protocol, index in indices.items():
                try:
                    self.tell(name, protocol, "measuring")
                    done[protocol] = PartRun(model=name, protocol=protocol, run=self._part(model, protocol, index))
                except _FAILURES as error:
                    done[protocol] = self._failed(name, protocol, index, error)
        del model
        _give_memory_back()
        return done

    def _part(self, model: StagedModel, protocol: str, index: int) -> BenchRun:
        place = self.folder.run_folder(index) if self.folder else None
        run = bench_model(
            model,
            self.dataset,
            self.settings,
            protocol=protocol,
            output=place,
            resume=place is not None and place.exists(),
            on_record=self.on_record,
            on_warning=self.on_warning,
            frames=FrameStore(self.folder.path / FRAMES_FOLDER) if self.folder else None,
        )
        if self.folder:
            self.folder.note(index, "ended")
        return run

    def _failed(self, name: str, protocol: str, index: int, error: BaseException) -> PartRun:
        reason = " ".join(str(error).split()) or type(error).__name__
        refused = isinstance(error, CutError)
        self.tell(name, protocol, f"{'cannot be measured this way' if refused else 'FAILED'}: {reason}")
        if self.folder:
            self.folder.note(index, "failed", reason, refused=refused)
        return PartRun(model=name, protocol=protocol, error=reason, refused=refused)


def _finish(folder: ComparisonFolder, runs: Sequence[PartRun], result: Comparison) -> None:
    from unfuse.report.html import report_html  # loads Altair, which waits until all is measured

    shown = []
    for index, part in enumerate(runs):
        if part.run is None:
            shown.append(ReportRun(part=part.for_report()))
        else:
            shown.append(run_of(part.run.manifest, part.run.records, part.run.probes, folder.run_folder(index)))
    command = folder.manifest.command
    page = report_html(told_apart(shown), command=command)
    folder.finish(result.to_dict(), comparison_markdown(result, command), page)


def _give_memory_back() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
