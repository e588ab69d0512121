"""The public calls that span several parts: ``unfuse.bench`` and ``unfuse.verify``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfuse.adapters.registry import DEMO, check_model, load
from unfuse.errors import InputError
from unfuse.protocols import BenchRun, BenchSettings, bench_model
from unfuse.samples import Dataset, Sample, read_dataset
from unfuse.samples.demo import MAX_NEW_TOKENS, demo_dataset
from unfuse.staged_model import StagedModel

if TYPE_CHECKING:
    from unfuse.verification import Verification

_VERIFY_TOKENS = 48


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
) -> BenchRun:
    """Measures a model's stages on a dataset.

    Args:
        models: one model: a name, or a loaded one.
        dataset: a folder in the instruction-set layout, or a ``Dataset``; the demo recordings by default.
        protocol: ``decoupled``.
        max_samples: only the first so many samples.
        device: as for ``unfuse.load``.
        dtype: as for ``unfuse.load``.
        engine: as for ``unfuse.load``.
        output: run folder that is written as the run goes on.
        resume: continue the run in ``output``.
        **settings: fields of ``BenchSettings``.

    Raises:
        InputError: anything wrong with the model, the dataset or an option, before a model is loaded.
    """
    if protocol != "decoupled":
        raise InputError("protocol", found=repr(protocol), expected="decoupled")
    names = [models] if isinstance(models, (str, StagedModel)) else list(models)
    if len(names) != 1:
        raise InputError("models", found=len(names), expected="one a run")
    if isinstance(names[0], str):
        check_model(names[0])
        settings.setdefault("max_new_tokens", default_tokens(names[0]))
    options = BenchSettings(**settings)
    data = open_dataset(dataset, max_samples)
    data.check_media()
    model = names[0] if isinstance(names[0], StagedModel) else load(names[0], device=device, dtype=dtype, engine=engine)
    return bench_model(model, data, options, output=Path(output) if output else None, resume=resume)


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
