"""Small features that are identified by a number."""

from __future__ import annotations

import pytest
import torch

from unfuse.features import Features
from unfuse.stages import Provenance

MODEL = "a" * 64


def scene(number: int, *, model: str = MODEL, rows: int = 7, dtype: torch.dtype = torch.float32) -> Features:
    """Features filled with their number."""
    origin = Provenance(
        model_fingerprint=model,
        family="eventgpt",
        media_sha256=f"{number:064x}",
        num_frames=5,
        dtype=str(dtype).removeprefix("torch."),
        shape=(rows, 4),
    )
    deeper = (torch.full((rows, 4), number + 0.5, dtype=dtype),)
    return Features(torch.full((rows, 4), float(number), dtype=dtype), origin, deeper, {"media_tokens": rows})


@pytest.fixture
def make():
    return scene


@pytest.fixture
def get():
    """Looks a number up."""
    return lambda store, number, model=MODEL: store.get(model, f"{number:064x}", "float32")
