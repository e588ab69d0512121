"""``bench``: check everything, then measure one model, or compare several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from unfuse.api.defaults import check_resume, default_tokens, open_dataset
from unfuse.benchmarking import (
    PROTOCOLS,
    BenchListener,
    BenchRun,
    BenchSettings,
    ComparisonRun,
    ModelSource,
    RunOptions,
    bench_model,
    bench_several,
)
from unfuse.errors import InputError
from unfuse.loading import Placement, check_model
from unfuse.records import PROTOCOL_STAGES, read_comparison, read_manifest, refuse_occupied
from unfuse.samples import Dataset
from unfuse.staged_model import StagedModel

ALL_PROTOCOLS: Final = tuple(PROTOCOLS)
EQUAL_TOKENS: Final = 46
"""Default number of new tokens if several models are compared: the mean of the original benchmark's answers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchOptions:
    """Options of a benchmark, as for ``unfuse.bench``."""

    dataset: str | Path | Dataset | None = None
    protocol: str = "decoupled"
    max_samples: int | None = None
    placement: Placement = field(default_factory=Placement)
    output: str | Path | None = None
    """Run folder; None keeps the run in memory."""
    resume: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ``BenchSettings``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchPlan:
    """Models and protocols of a benchmark. Nothing is loaded yet."""

    models: tuple[str, ...]
    protocols: tuple[str, ...]
    events: bool
    """Whether the input of any model is events."""
    video: bool
    """Whether the input of any model is video or images."""

    @property
    def single(self) -> bool:
        """True for one run, False for a comparison."""
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
    """A benchmark with checked input."""

    plan: BenchPlan
    settings: BenchSettings
    data: Dataset
    placement: Placement
    output: Path | None
    resume: bool
    loaded: Mapping[str, StagedModel] = field(default_factory=dict)
    """Models that the caller has loaded, by name."""


def plan_bench(models: Sequence[str], protocol: str, *, loaded: Mapping[str, StagedModel] | None = None) -> BenchPlan:
    """Parse models and protocol.

    Args:
        models: names.
        protocol: one, or ``all``.
        loaded: models that are loaded already, by name.

    Raises:
        InputError: no such model, a model given twice, or no such protocol.
    """
    if protocol != "all" and protocol not in PROTOCOL_STAGES:
        raise InputError("protocol", found=repr(protocol), expected=f"{', '.join(PROTOCOL_STAGES)} or all")
    if not models:
        raise InputError("models", found="none", expected="at least one")
    if twice := [name for name in models if list(models).count(name) > 1]:
        raise InputError("models", found=f"{twice[0]} twice", expected="each model once")
    wants_events = [
        loaded[name].adapter.takes == "events" if loaded and name in loaded else check_model(name).wants_events
        for name in models
    ]
    protocols = ALL_PROTOCOLS if protocol == "all" else (protocol,)
    return BenchPlan(
        models=tuple(models), protocols=protocols, events=any(wants_events), video=not all(wants_events)
    )  # fmt: skip


def prepare_bench(
    models: Sequence[str | StagedModel],
    options: BenchOptions | None = None,
    *,
    on_check: Callable[[Dataset], None] | None = None,
) -> BenchJob:
    """Check all input of a benchmark; load nothing.

    Args:
        models: names, or loaded models.
        options: the options; each has a default.
        on_check: called before the samples' files are checked; the check may take a while.

    Raises:
        InputError: anything wrong with the models, the dataset or an option.
        RunFolderError: the folder is taken, or holds no run to continue.
    """
    given = options or BenchOptions()
    loaded = {model.name: model for model in models if isinstance(model, StagedModel)}
    names = [model.name if isinstance(model, StagedModel) else model for model in models]
    plan = plan_bench(names, given.protocol, loaded=loaded)
    folder = _check_folder(plan, given)
    settings = plan.settings(**given.settings)
    data = open_dataset(given.dataset, given.max_samples)
    if on_check is not None:
        on_check(data)
    data.check_media(events=plan.events, video=plan.video)
    return BenchJob(
        plan=plan, settings=settings, data=data, placement=given.placement, output=folder, resume=given.resume,
        loaded=loaded,
    )  # fmt: skip


def _check_folder(plan: BenchPlan, options: BenchOptions) -> Path | None:
    """Return the run folder.

    Raises:
        InputError: a run is to be continued, but no folder is given.
        RunFolderError: the folder is taken, or holds no run to continue.
    """
    check_resume(options.output, resume=options.resume)
    if options.output is None:
        return None
    folder = Path(options.output)
    if not options.resume:
        refuse_occupied(folder)
    elif plan.single:
        read_manifest(folder)
    else:
        read_comparison(folder)
    return folder


def run_bench(job: BenchJob, listener: BenchListener | None = None) -> BenchRun | ComparisonRun:
    """Load and measure.

    Args:
        job: from ``prepare_bench``.
        listener: notified of every model and sample.

    Returns:
        One run for one model and protocol; a comparison for several.
    """
    options = RunOptions(output=job.output, resume=job.resume, listener=listener or BenchListener())

    def load(name: str) -> StagedModel:
        if name in job.loaded:
            return job.loaded[name]
        options.listener.loading(name)
        model = job.placement.load(name)
        options.listener.loaded(model)
        return model

    if not job.plan.single:
        models = ModelSource(names=job.plan.models, load=load, placement=job.placement)
        return bench_several(models, job.plan.protocols, job.data, job.settings, options)
    name, protocol = job.plan.models[0], job.plan.protocols[0]
    model = load(name)
    options.listener.part(name, protocol, "")
    try:
        return bench_model(model, job.data, job.settings, options, protocol=protocol)
    finally:
        if name not in job.loaded:
            model.close()
