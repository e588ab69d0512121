"""What ``get_image_features`` and its kin return, brought to one form and back.

Depending on family and version that is a tensor ``[items, P, H]``, a list of ``[n_i, H]`` or lists of these, bare or as
``pooler_output`` of a ``ModelOutput``, with or without ``deepstack_features`` (a list with one such thing per decoder
layer). Here it becomes rows ``[N, H]``, one a placeholder position, and a plain description of how they were grouped.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def joined(forms: Sequence[Form]) -> Form:
    """One form of several prompts' features together: items follow one another."""
    first = forms[0]

    def join(parts: list[Any]) -> Any:
        if isinstance(parts[0], dict):
            return {"items": [item for part in parts for item in part["items"]]}
        return [sum(part[0] for part in parts), *parts[0][1:]]

    layers = (
        None
        if first["layers"] is None
        else [join(list(same)) for same in zip(*(f["layers"] for f in forms), strict=True)]
    )
    return {"bare": first["bare"], "pooled": join([form["pooled"] for form in forms]), "layers": layers}


def shares(found: Rows, parts: int) -> list[Rows]:
    """Of several prompts' features together, each prompt's, where all are alike; empty where that cannot be."""
    form = found.form
    pooled = _shares(form["pooled"], parts)
    layers = [_shares(layer, parts) for layer in form["layers"] or ()]
    if not all((pooled, *layers)):
        return []
    sizes = [_count(part) for part in pooled]
    deeper = [layer.split(sizes) for layer in found.layers]
    return [
        Rows(
            rows,
            tuple(layer[index] for layer in deeper),
            {
                "bare": form["bare"],
                "pooled": pooled[index],
                "layers": None if form["layers"] is None else [layer[index] for layer in layers],
            },
        )
        for index, rows in enumerate(found.rows.split(sizes))
    ]


def _shares(form: Any, parts: int) -> list[Any]:
    items = form["items"] if isinstance(form, dict) else form
    size, rest = divmod(len(items) if isinstance(form, dict) else items[0], parts)
    if rest:
        return []
    if isinstance(form, dict):
        return [{"items": items[size * index : size * (index + 1)]} for index in range(parts)]
    return [[size, *items[1:]] for _ in range(parts)]


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
