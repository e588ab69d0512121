"""Defaults that the verbs share: the dataset, and the number of new tokens."""

from __future__ import annotations

from pathlib import Path

from unfuse.errors import InputError
from unfuse.loading import DEMO
from unfuse.samples import Dataset, read_dataset
from unfuse.samples.demo import MAX_NEW_TOKENS, demo_dataset


def open_dataset(dataset: str | Path | Dataset | None, max_samples: int | None) -> Dataset:
    """Return a dataset by its folder, or the demo recordings.

    Raises:
        InputError: ``max_samples`` is below 1.
        DatasetError: the folder holds no dataset.
    """
    if max_samples is not None and max_samples < 1:
        raise InputError("max-samples", found=max_samples, expected="at least 1")
    if isinstance(dataset, Dataset):
        return Dataset(name=dataset.name, samples=dataset.samples[:max_samples])
    if dataset is None or str(dataset) == DEMO:
        return demo_dataset(max_samples=max_samples)
    return read_dataset(dataset, max_samples=max_samples)


def default_tokens(model: str) -> int:
    """Return the default limit of new tokens: 512, or 64 for the small demo model."""
    return MAX_NEW_TOKENS if model == DEMO else 512


def check_resume(output: str | Path | None, *, resume: bool) -> None:
    """Refuse to continue a run without its folder.

    Raises:
        InputError: ``resume`` without ``output``.
    """
    if resume and output is None:
        raise InputError("resume", found="no output", expected="the folder of the run to continue")
