"""What ``get_image_features`` and its kin return, brought to one form and back.

Depending on family and version that is a tensor ``[items, P, H]``, a list of ``[n_i, H]`` or lists of these, bare or as
``pooler_output`` of a ``ModelOutput``, with or without ``deepstack_features`` (a list with one such thing per decoder
layer). Here it becomes rows ``[N, H]``, one a placeholder position, and a plain description of how they were grouped.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from unfuse.errors import CutError

Form = dict[str, Any]
"""Plain JSON."""


@dataclass(frozen=True, slots=True)
class Rows:
    """One modality's features in the one form."""

    rows: torch.Tensor
    """``[N, H]``."""
    layers: tuple[torch.Tensor, ...]
    """``[N, H]`` each."""
    form: Form
    """How the model had grouped them."""


def normalise(output: Any) -> Rows:
    """Brings a return value to the one form.

    Raises:
        CutError: it holds no features that this knows how to read.
    """
    bare = isinstance(output, (torch.Tensor, list, tuple))
    pooled = output if bare else getattr(output, "pooler_output", None)
    deeper = None if bare else getattr(output, "deepstack_features", None)
    try:
        rows = _rows(pooled)
        layers = tuple(_rows(layer) for layer in deeper or ())
    except (TypeError, ValueError, RuntimeError, AttributeError):
        raise CutError("features", found=f"a {type(output).__name__}", expected="tensors [..., H]") from None
    form = {
        "bare": bare,
        "pooled": _form(pooled),
        "layers": None if deeper is None else [_form(layer) for layer in deeper],
    }
    return Rows(rows, layers, form)


def restore(rows: torch.Tensor, layers: tuple[torch.Tensor, ...], form: Form) -> Any:
    """What the model itself had returned, from the one form."""
    pooled = _grouped(rows, form["pooled"])
    if form["bare"]:
        return pooled
    deeper = form["layers"]
    if deeper is not None:
        deeper = [_grouped(layer, layer_form) for layer, layer_form in zip(layers, deeper, strict=True)]
    return SimpleNamespace(pooler_output=pooled, deepstack_features=deeper)


def count(form: Form) -> int:
    """N of a form."""
    return _count(form["pooled"])


def _rows(value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.reshape(-1, value.shape[-1])
    return torch.cat([_rows(item) for item in value])


def _form(value: Any) -> Any:
    return list(value.shape) if isinstance(value, torch.Tensor) else {"items": [_form(item) for item in value]}


def _count(form: Any) -> int:
    if isinstance(form, dict):
        return sum(_count(item) for item in form["items"])
    total = 1
    for size in form[:-1]:
        total *= size
    return total


def _grouped(rows: torch.Tensor, form: Any) -> Any:
    if not isinstance(form, dict):
        return rows.view(form)
    parts = rows.split([_count(item) for item in form["items"]])
    return tuple(_grouped(part, item) for part, item in zip(parts, form["items"], strict=True))
