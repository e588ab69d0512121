"""Converts the output of ``get_<modality>_features`` to rows and back.

Depending on family and version of transformers the output is a tensor ``[items, P, H]``, a list of ``[n_i, H]`` or
nested lists of these; bare or as ``pooler_output`` of a ``ModelOutput``; with or without ``deepstack_features`` (a list
with one such value per decoder layer). It becomes rows ``[N, H]``, one per placeholder position, and a form: a JSON
description of how the rows were grouped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from unfuse.errors import CutError

Form = dict[str, Any]
"""Grouping of rows, as JSON."""


@dataclass(frozen=True, slots=True)
class FeatureRows:
    """Features of one modality as rows."""

    rows: torch.Tensor
    """``[N, H]``."""
    layers: tuple[torch.Tensor, ...]
    """``[N, H]`` each: features for deeper decoder layers (DeepStack)."""
    form: Form
    """Grouping of the rows in the model's output."""


def normalise(output: Any) -> FeatureRows:
    """Convert an output to rows.

    Raises:
        CutError: the output has no known form.
    """
    bare = isinstance(output, (torch.Tensor, list, tuple))
    pooled = output if bare else getattr(output, "pooler_output", None)
    deepstack = None if bare else getattr(output, "deepstack_features", None)
    try:
        rows = _rows(pooled)
        layers = tuple(_rows(layer) for layer in deepstack or ())
    except (TypeError, ValueError, RuntimeError, AttributeError):
        raise CutError("features", found=f"a {type(output).__name__}", expected="tensors [..., H]") from None
    form = {
        "bare": bare,
        "pooled": _form(pooled),
        "layers": None if deepstack is None else [_form(layer) for layer in deepstack],
    }
    return FeatureRows(rows, layers, form)


def restore(rows: torch.Tensor, layers: tuple[torch.Tensor, ...], form: Form) -> Any:
    """Convert rows back to the output that the model had returned."""
    pooled = _grouped(rows, form["pooled"])
    if form["bare"]:
        return pooled
    deepstack = form["layers"]
    if deepstack is not None:
        deepstack = [_grouped(layer, layer_form) for layer, layer_form in zip(layers, deepstack, strict=True)]
    return SimpleNamespace(pooler_output=pooled, deepstack_features=deepstack)


def count(form: Form) -> int:
    """Return the number of rows of a form."""
    return _count(form["pooled"])


def join_forms(forms: Sequence[Form]) -> Form:
    """Return the form of several prompts' features together: their items follow one another."""
    first = forms[0]

    def join(parts: list[Any]) -> Any:
        if isinstance(parts[0], dict):
            return {"items": [item for part in parts for item in part["items"]]}
        return [sum(part[0] for part in parts), *parts[0][1:]]

    layers = (
        None
        if first["layers"] is None
        else [join(list(parts)) for parts in zip(*(f["layers"] for f in forms), strict=True)]
    )
    return {"bare": first["bare"], "pooled": join([form["pooled"] for form in forms]), "layers": layers}


def split_equally(found: FeatureRows, parts: int) -> list[FeatureRows]:
    """Split the features of several equal prompts; return an empty list if they cannot be divided equally."""
    form = found.form
    pooled = _split_form(form["pooled"], parts)
    layers = [_split_form(layer, parts) for layer in form["layers"] or ()]
    if not all((pooled, *layers)):
        return []
    sizes = [_count(part) for part in pooled]
    layer_parts = [layer.split(sizes) for layer in found.layers]
    return [
        FeatureRows(
            rows,
            tuple(layer[index] for layer in layer_parts),
            {
                "bare": form["bare"],
                "pooled": pooled[index],
                "layers": None if form["layers"] is None else [layer[index] for layer in layers],
            },
        )
        for index, rows in enumerate(found.rows.split(sizes))
    ]


def _split_form(form: Any, parts: int) -> list[Any]:
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
