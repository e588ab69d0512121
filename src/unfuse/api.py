"""The public calls that span several parts: ``unfuse.bench``, ``unfuse.run`` and ``unfuse.verify``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from unfuse.adapters.registry import DEMO, check_model, load
from unfuse.errors import InputError
from unfuse.protocols import PROTOCOLS, BenchRun, BenchSettings, ComparisonRun, bench_model, bench_several
from unfuse.runs import PROTOCOL_STAGES, read_manifest, refuse_occupied
from unfuse.samples import Dataset, Sample, read_dataset
from unfuse.samples.demo import MAX_NEW_TOKENS, demo_dataset
from unfuse.staged_model import StagedModel
from unfuse.throughput.cluster.settings import ray_settings

if TYPE_CHECKING:
    from unfuse.runs.answers_file import AnswerRecord
    from unfuse.throughput.job import AnswersRun
    from unfuse.verification import Verification

_VERIFY_TOKENS = 48
ALL_PROTOCOLS: Final = tuple(PROTOCOLS)
EQUAL_TOKENS: Final = 46
"""New tokens of each answer where several models are compared and no length is given: the seed's mean."""


def bench(
    models: str | StagedModel | Sequence[str | StagedModel] = DEMO,
    dataset: str | Path | Dataset | None = None,
    *,
    protocol: str = "decoupled",
    max_samples: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    engine: str = "auto",
    output: str | Path | None = None,
    resume: bool = False,
    **settings: Any,
) -> BenchRun | ComparisonRun:
    """Measures one model's stages on a dataset, or compares several on the same samples.

    Args:
        models: a name or a loaded model, or several; names are loaded one at a time.
        dataset: a folder in the instruction-set layout, or a ``Dataset``; the demo recordings by default.
        protocol: ``decoupled``, ``fused``, ``hooked``, ``reencode`` or ``all``.
        max_samples: only the first so many samples.
        device: as for ``unfuse.load``.
        dtype: as for ``unfuse.load``.
        engine: as for ``unfuse.load``.
        output: run folder that is written as the run goes on.
        resume: continue the run in ``output``.
        **settings: fields of ``BenchSettings``.

    Returns:
        One run for one model and protocol; a comparison for several.

    Raises:
        InputError: anything wrong with the model, the dataset or an option, before a model is loaded.
    """
    given = [models] if isinstance(models, (str, StagedModel)) else list(models)
    loaded = {model.name: model for model in given if isinstance(model, StagedModel)}
    names = [model if isinstance(model, str) else model.name for model in given]
    plan = plan_bench(names, protocol, known=loaded)
    options = plan.settings(**settings)
    data = open_dataset(dataset, max_samples)
    data.check_media(events=plan.events, video=plan.video)
    place = Path(output) if output else None

    def get(name: str) -> StagedModel:
        return loaded[name] if name in loaded else load(name, device=device, dtype=dtype, engine=engine)

    if plan.single:
        return bench_model(get(names[0]), data, options, protocol=protocol, output=place, resume=resume)
    placement = (device, dtype, engine)
    return bench_several(names, plan.protocols, get, data, options, placement=placement, output=place, resume=resume)


def run(
    model: str | StagedModel = DEMO,
    dataset: str | Path | Dataset | None = None,
    *,
    questions: Sequence[str] | None = None,
    max_samples: int | None = None,
    device: str = "auto",
    devices: str | None = None,
    dtype: str = "auto",
    engine: str = "auto",
    output: str | Path | None = None,
    resume: bool = False,
    ray: str | None = None,
    ray_pools: str | None = None,
    on_answer: Callable[[AnswerRecord], None] | None = None,
    **settings: Any,
) -> AnswersRun:
    """Answers a whole dataset as fast as the hardware allows.

    Rows with the same media are one scene: loaded, preprocessed and encoded once.

    Args:
        model: a name or a loaded model.
        dataset: a folder in the instruction-set layout, or a ``Dataset``; the demo recordings by default.
        questions: asked of every row in the place of its own, and filed under ``<sample_id>#<n>``.
        max_samples: only the first so many rows.
        devices: in the place of ``device``: ``auto`` for all GPUs of this host, a number of them, or names with commas
            between; more than one get a process each, and the model must be a name.
        device: as for ``unfuse.load``.
        dtype: as for ``unfuse.load``.
        engine: as for ``unfuse.load``.
        output: run folder, written as the run goes on; default: ``runs/<time>-<model>-answers``.
        resume: continue the run in ``output``; what failed there is tried again.
        ray: on a Ray cluster, which loads the model by its name: ``local`` for one on this machine, ``auto``
            or ``HOST:PORT``.
        ray_pools: actors of each stage there, as ``load=4,preprocess=2-8,encode=1,answer=1``.
        on_answer: called with every answer once it is on the disk, by another thread.
        **settings: fields of ``RunSettings``.

    Returns:
        Counts and rates; the answers are read from the folder, for they may be many.

    Raises:
        InputError: anything wrong with the model, the rows or an option, before a model is loaded.
        RunFolderError: the folder is taken, or belongs to another run.
    """
    name = model if isinstance(model, str) else model.name
    if isinstance(model, str):
        check_model(model)
    if settings.get("max_new_tokens") is None:
        settings["max_new_tokens"] = default_tokens(name)

    # They import torch, for which a benchmark whose input is wrong need not wait.
    from unfuse.throughput.devices import find_devices
    from unfuse.throughput.job import RunSettings, Work, answer_dataset

    options = RunSettings(**settings)
    own = {"workers": options.workers, "scene_seconds": options.scene_seconds}
    cluster = ray_settings(ray, ray_pools, own | {"devices": devices, "store": options.store})
    folder = answers_folder(name, output, resume=resume)
    work = Work(open_dataset(dataset, max_samples), questions)
    return answer_dataset(
        model,
        work,
        options,
        output=folder,
        resume=resume,
        placement=(device, dtype, engine),
        ray=cluster,
        devices=() if devices is None else find_devices(devices),
        on_answer=on_answer,
    )


def answers_folder(model: str, output: str | Path | None, *, resume: bool) -> Path:
    """Where a run's answers go.

    Raises:
        InputError: a run is to be continued, and it is not said which.
        RunFolderError: the folder is taken, or holds no run to continue.
    """
    if output is None:
        if resume:
            raise InputError("--resume", found="no --output", expected="the folder of the run to continue")
        output = Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{Path(model).name.replace(':', '-')}-answers"
    folder = Path(output)
    if resume:
        read_manifest(folder)
    else:
        refuse_occupied(folder)
    return folder


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchPlan:
    """A benchmark that has been understood: nothing is loaded yet."""

    models: tuple[str, ...]
    protocols: tuple[str, ...]
    events: bool
    """Whether a model is shown events."""
    video: bool
    """Whether a model is shown video where there is some."""

    @property
    def single(self) -> bool:
        """Whether it is one run, not a comparison."""
        return len(self.models) == len(self.protocols) == 1

    def settings(self, **given: Any) -> BenchSettings:
        """Options with defaults that fit the plan: several models write equally many tokens."""
        if given.get("max_new_tokens") is None:
            given["max_new_tokens"] = min(default_tokens(model) for model in self.models)
            if len(self.models) > 1 and given.get("output_length") is None:
                given["output_length"] = EQUAL_TOKENS
        return BenchSettings(**given)


def plan_bench(models: Sequence[str], protocol: str, *, known: Mapping[str, StagedModel] | None = None) -> BenchPlan:
    """Understands models and protocol.

    Args:
        models: names.
        protocol: one, or ``all``.
        known: models that are loaded already, by name.

    Raises:
        InputError: a name that is none, a model given twice, or no such protocol.
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


def verify(
    model: str | StagedModel,
    sample: Sample | None = None,
    *,
    golden: str | Path | None = None,
    max_new_tokens: int = _VERIFY_TOKENS,
    device: str = "auto",
    dtype: str = "auto",
    engine: str = "auto",
) -> Verification:
    """Checks that the stages compute what the whole computes.

    Args:
        model: a name, or a loaded model.
        sample: the scene to check on; a demo recording by default.
        golden: folder of reference outputs of this checkpoint.
        max_new_tokens: tokens compared.
        device: as for ``unfuse.load``.
        dtype: as for ``unfuse.load``.
        engine: as for ``unfuse.load``.
    """
    if isinstance(model, str):
        check_model(model)
    scene = sample or demo_dataset(max_samples=1).samples[0]

    from unfuse.verification import verify_model
    from unfuse.verification.golden import read_golden

    reference = read_golden(golden) if golden is not None else None
    loaded = load(model, device=device, dtype=dtype, engine=engine) if isinstance(model, str) else model
    return verify_model(loaded, scene, max_new_tokens=max_new_tokens, reference=reference)


def open_dataset(dataset: str | Path | Dataset | None, max_samples: int | None) -> Dataset:
    """A dataset by folder, or the demo's."""
    if max_samples is not None and max_samples < 1:
        raise InputError("max-samples", found=max_samples, expected="at least 1")
    if isinstance(dataset, Dataset):
        return Dataset(name=dataset.name, samples=dataset.samples[:max_samples])
    if dataset is None or str(dataset) == DEMO:
        return demo_dataset(max_samples=max_samples)
    return read_dataset(dataset, max_samples=max_samples)


def default_tokens(model: str) -> int:
    """New tokens at most: the seed's 512, or 64 for the small demo model."""
    return MAX_NEW_TOKENS if model == DEMO else 512
