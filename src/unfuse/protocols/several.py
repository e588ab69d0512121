"""Several models, or one under several protocols, on the same samples: one loaded at a time.

What has ended is kept whatever comes later: a model that fails to load, or fails while it runs, leaves its reason in
the report and the others their results.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from unfuse.errors import RunFolderError, UnfuseError
from unfuse.protocols.bench import BenchRun, OnRecord, bench_model, own_command, read_run
from unfuse.protocols.settings import BenchSettings
from unfuse.report import Comparison, Part, compare, comparison_markdown
from unfuse.runs import ComparisonFolder
from unfuse.samples import Dataset
from unfuse.staged_model import StagedModel

Load = Callable[[str], StagedModel]
OnPart = Callable[[str, str, str], None]
"""Called with model, protocol and what happens to it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparisonRun:
    """Several finished runs."""

    command: tuple[str, ...]
    runs: tuple[tuple[str, str, BenchRun | None, str | None], ...]
    """(model, protocol, its run, why there is none)."""
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
        names = [(model, protocol) for model, protocol, _, _ in self.runs]
        folder = ComparisonFolder.create(path, names, created=_now(), command=self.command)
        for index, (_, _, run, error) in enumerate(self.runs):
            if run is not None:
                run.save(folder.run_folder(index))
            folder.note(index, "failed" if run is None else "ended", error)
        folder.finish(self.result.to_dict(), comparison_markdown(self.result, self.command))


def bench_several(
    models: Sequence[str],
    protocols: Sequence[str],
    load: Load,
    dataset: Dataset,
    settings: BenchSettings,
    *,
    output: Path | None = None,
    resume: bool = False,
    command: tuple[str, ...] | None = None,
    on_part: OnPart | None = None,
    on_record: OnRecord | None = None,
) -> ComparisonRun:
    """Measures every model under every protocol.

    Args:
        models: names; each is loaded once, after the one before is gone.
        protocols: in the order in which they are run.
        load: from a name to a loaded model.
        dataset: its media have been checked.
        settings: the same for all.
        output: folder of all runs, written as they go on; None keeps them in memory.
        resume: continue what lies in ``output``.
        command: for the record; the process's own by default.
        on_part: called when a part begins, is kept, or fails.
        on_record: as for ``bench_model``.

    Raises:
        RunFolderError: the folder is taken, or belongs to another comparison.
    """
    parts = [(model, protocol) for model in models for protocol in protocols]
    command = command or own_command()
    folder = None
    if output is not None:
        make = ComparisonFolder.resume if resume else None
        folder = (
            make(output, parts) if make else ComparisonFolder.create(output, parts, created=_now(), command=command)
        )
    several = _Several(load, dataset, settings, folder, on_part or (lambda *_: None), on_record)
    runs = several.run(models, protocols)
    result = compare([_part(*run) for run in runs])
    if folder is not None:
        folder.finish(result.to_dict(), comparison_markdown(result, folder.manifest.command))
    return ComparisonRun(command=command, runs=tuple(runs), result=result, folder=output)


@dataclass(slots=True)
class _Several:
    load: Load
    dataset: Dataset
    settings: BenchSettings
    folder: ComparisonFolder | None
    tell: OnPart
    on_record: OnRecord | None

    def run(
        self, models: Sequence[str], protocols: Sequence[str]
    ) -> list[tuple[str, str, BenchRun | None, str | None]]:
        runs: list[tuple[str, str, BenchRun | None, str | None]] = []
        for name in models:
            indices = {protocol: len(runs) + i for i, protocol in enumerate(protocols)}
            ended = {p: run for p, i in indices.items() if (run := self._ended(i)) is not None}
            for protocol in ended:
                self.tell(name, protocol, "ended before; kept")
            done: dict[str, tuple[BenchRun | None, str | None]] = {p: (run, None) for p, run in ended.items()}
            if len(done) < len(protocols):
                done |= self._model(name, {p: i for p, i in indices.items() if p not in ended})
            runs += [(name, protocol, *done[protocol]) for protocol in protocols]
        return runs

    def _ended(self, index: int) -> BenchRun | None:
        """The run of a part that came to its end before, if it is of the same work."""
        if self.folder is None or self.folder.manifest.parts[index].status != "ended":
            return None
        run = read_run(self.folder.run_folder(index))
        recorded = (dict(run.manifest.config), run.manifest.dataset.get("sha256"))
        if recorded != (asdict(self.settings), self.dataset.sha256()):
            raise RunFolderError(
                f"run folder {self.folder.run_folder(index)}",
                found="a run of other options or another dataset",
                expected="the same ones",
                fix="undo the change or give another --output",
            )
        return run

    def _model(self, name: str, indices: dict[str, int]) -> dict[str, tuple[BenchRun | None, str | None]]:
        """Loads a model, measures it, and lets it go."""
        done: dict[str, tuple[BenchRun | None, str | None]] = {}
        try:
            self.tell(name, "", "loading")
            model = self.load(name)
        except (UnfuseError, OSError, RuntimeError, MemoryError) as error:
            for protocol, index in indices.items():
                done[protocol] = self._failed(name, protocol, index, error)
            return done
        with model:
            for protocol, index in indices.items():
                try:
                    self.tell(name, protocol, "measuring")
                    done[protocol] = self._part(model, protocol, index), None
                except (UnfuseError, OSError, RuntimeError, MemoryError) as error:
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
        )
        if self.folder:
            self.folder.note(index, "ended")
        return run

    def _failed(self, name: str, protocol: str, index: int, error: BaseException) -> tuple[None, str]:
        reason = " ".join(str(error).split()) or type(error).__name__
        self.tell(name, protocol, f"FAILED: {reason}")
        if self.folder:
            self.folder.note(index, "failed", reason)
        return None, reason


def _part(model: str, protocol: str, run: BenchRun | None, error: str | None) -> Part:
    if run is None:
        return Part(model=model, protocol=protocol, error=error)
    return Part(
        model=model, protocol=protocol, manifest=run.manifest, records=run.records, summary=run.result, error=error
    )


def _give_memory_back() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
