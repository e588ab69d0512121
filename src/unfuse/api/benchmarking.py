"""``bench``: check everything, then measure one model, or compare several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from unfuse.api.data import check_resume, default_tokens, open_dataset
from unfuse.errors import InputError
from unfuse.loading import Placement, check_model
from unfuse.protocols import PROTOCOLS, BenchRun, BenchSettings, ComparisonRun, bench_model, bench_several
from unfuse.runs import PROTOCOL_STAGES, SampleRecord, read_comparison, read_manifest, refuse_occupied
from unfuse.samples import Dataset
from unfuse.staged_model import StagedModel

ALL_PROTOCOLS: Final = tuple(PROTOCOLS)
EQUAL_TOKENS: Final = 46
"""Default number of new tokens where several models are compared: the mean of the original benchmark's answers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchPlan:
    """Models and protocols of a benchmark. Nothing is loaded yet."""

    models: tuple[str, ...]
    protocols: tuple[str, ...]
    events: bool
    """Whether any model is shown events."""
    video: bool
    """Whether any model is shown video or images."""

    @property
    def single(self) -> bool:
        """Whether it is one run, not a comparison."""
        return len(self.models) == len(self.protocols) == 1

    def settings(self, **given: Any) -> BenchSettings:
        """Return settings with the plan's defaults: several models write equally many tokens."""
        if given.get("max_new_tokens") is None:
            given["max_new_tokens"] = min(default_tokens(model) for model in self.models)
            if len(self.models) > 1 and given.get("output_length") is None:
                given["output_length"] = EQUAL_TOKENS
        return BenchSettings(**given)


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchJob:
    """A benchmark whose input has been checked."""

    plan: BenchPlan
    settings: BenchSettings
    data: Dataset
    placement: Placement
    output: Path | None
    resume: bool
    loaded: Mapping[str, StagedModel] = field(default_factory=dict)
    """Models that the caller has loaded, by name."""


class BenchListener:
    """Hears how a benchmark goes on; does nothing by default."""

    def loading(self, name: str) -> None:
        """Called before a model is loaded."""

    def loaded(self, model: StagedModel) -> None:
        """Called after a model was loaded."""

    def part(self, model: str, protocol: str, what: str) -> None:
        """Called when one model's run under one protocol begins, is kept, or fails."""

    def record(self, index: int, record: SampleRecord) -> None:
        """Called with every measured sample and warm-up."""

    def warning(self, text: str) -> None:
        """Called with warnings."""


def plan_bench(models: Sequence[str], protocol: str, *, known: Mapping[str, StagedModel] | None = None) -> BenchPlan:
    """Parse models and protocol.

    Args:
        models: names.
        protocol: one, or ``all``.
        known: models that are loaded already, by name.

    Raises:
        InputError: no such model, a model given twice, or no such protocol.
    """
    if protocol != "all" and protocol not in PROTOCOL_STAGES:
        raise InputError("protocol", found=repr(protocol), expected=f"{', '.join(PROTOCOL_STAGES)} or all")
    if not models:
        raise InputError("models", found="none", expected="at least one")
    if twice := [name for name in models if list(models).count(name) > 1]:
        raise InputError("models", found=f"{twice[0]} twice", expected="each once")
    wants = [
        known[name].family == "eventgpt" if known and name in known else check_model(name).wants_events
        for name in models
    ]
    protocols = ALL_PROTOCOLS if protocol == "all" else (protocol,)
    return BenchPlan(models=tuple(models), protocols=protocols, events=any(wants), video=not all(wants))


def prepare_bench(
    models: Sequence[str | StagedModel],
    dataset: str | Path | Dataset | None = None,
    *,
    protocol: str = "decoupled",
    max_samples: int | None = None,
    placement: Placement | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    settings: Mapping[str, Any] | None = None,
    on_check: Callable[[Dataset], None] | None = None,
) -> BenchJob:
    """Check all input of a benchmark; loads nothing.

    Args:
        models: names, or loaded models.
        dataset: as for ``unfuse.bench``.
        protocol: as for ``unfuse.bench``.
        max_samples: as for ``unfuse.bench``.
        placement: where models are loaded; automatic by default.
        output: run folder; None keeps the run in memory.
        resume: continue the run in ``output``.
        settings: fields of ``BenchSettings``.
        on_check: called before the samples' files are looked at, which may take a while.

    Raises:
        InputError: anything wrong with the models, the dataset or an option.
        RunFolderError: the folder is taken, or holds no run to continue.
    """
    loaded = {model.name: model for model in models if isinstance(model, StagedModel)}
    names = [model.name if isinstance(model, StagedModel) else model for model in models]
    plan = plan_bench(names, protocol, known=loaded)
    check_resume(output, resume=resume)
    folder = None if output is None else Path(output)
    if folder is not None and not resume:
        refuse_occupied(folder)
    elif folder is not None:
        _ = read_manifest(folder) if plan.single else read_comparison(folder)
    options = plan.settings(**(settings or {}))
    data = open_dataset(dataset, max_samples)
    if on_check is not None:
        on_check(data)
    data.check_media(events=plan.events, video=plan.video)
    return BenchJob(
        plan=plan, settings=options, data=data, placement=placement or Placement(), output=folder, resume=resume,
        loaded=loaded,
    )  # fmt: skip


def run_bench(job: BenchJob, listener: BenchListener | None = None) -> BenchRun | ComparisonRun:
    """Load and measure.

    Args:
        job: from ``prepare_bench``.
        listener: hears of every model and sample.

    Returns:
        One run for one model and protocol; a comparison for several.
    """
    told = listener or BenchListener()

    def get(name: str) -> StagedModel:
        if name in job.loaded:
            return job.loaded[name]
        told.loading(name)
        model = job.placement.load(name)
        told.loaded(model)
        return model

    if not job.plan.single:
        return bench_several(
            job.plan.models, job.plan.protocols, get, job.data, job.settings,
            placement=job.placement, output=job.output, resume=job.resume,
            on_part=told.part, on_record=told.record, on_warning=told.warning,
        )  # fmt: skip
    name, protocol = job.plan.models[0], job.plan.protocols[0]
    model = get(name)
    told.part(name, protocol, "")
    try:
        return bench_model(
            model, job.data, job.settings, protocol=protocol, output=job.output, resume=job.resume,
            on_record=told.record, on_warning=told.warning,
        )  # fmt: skip
    finally:
        if name not in job.loaded:
            model.close()
