"""Finds tower, projector and decoder of a fused model by structure, not by name.

A tower is an outermost network with the vision config's class. Without such a config it is an outermost network with a
convolution and without the token embedding. A projector is a sibling of a tower that has parameters and is neither
decoder nor head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from unfuse.errors import CutError

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)


def find_towers(model: Any) -> dict[str, nn.Module]:
    """Return vision towers by the last part of their names.

    Raises:
        CutError: there is none.
    """
    embedding = model.get_input_embeddings()
    kinds = _vision_kinds(model.config)
    found = _outermost(
        model, lambda m: isinstance(m, PreTrainedModel) and type(m.config) in kinds and not _holds(m, embedding)
    )
    if not found:
        found = _outermost(
            model, lambda m: any(isinstance(x, _CONVOLUTIONS) for x in m.modules()) and not _holds(m, embedding)
        )
    if not found:
        raise CutError(
            f"vision tower of {type(model).__name__}",
            found="no network of the vision config's kind, and none with a convolution",
            expected="a vision tower",
        )
    return {name.rpartition(".")[2]: module for name, module in found.items()}


def find_projectors(model: Any) -> dict[str, nn.Module]:
    """Return the modules between towers and decoder by name; empty if the tower contains the projector."""
    towers = list(find_towers(model).values())
    taken = [*towers, model.get_output_embeddings(), model.get_input_embeddings()]
    decoder = model.get_decoder()
    found = {}
    for parent in model.modules():
        children = dict(parent.named_children())
        if not any(child is tower for child in children.values() for tower in towers):
            continue
        for name, child in children.items():
            used = any(child is module or _holds(child, module) for module in taken) or child is decoder
            if not used and next(child.parameters(), None) is not None:
                found[name] = child
    return found


def quantisation(model: Any) -> str | None:
    """Return the method by which the weights are quantised; None for weights in their own dtype."""
    method = getattr(model, "quantization_method", None)
    return None if method is None else str(getattr(method, "value", method))


def find_decoder(model: Any) -> nn.Module:
    """Return the text decoder: the network that takes ``inputs_embeds``.

    Raises:
        CutError: the decoder contains a tower, or lacks the token embedding.
    """
    decoder: nn.Module = model.get_decoder()
    towers = find_towers(model).values()
    if not _holds(decoder, model.get_input_embeddings()) or any(_holds(decoder, tower) for tower in towers):
        raise CutError(
            f"decoder of {type(model).__name__}",
            found=f"{type(decoder).__name__}, which holds the vision tower or lacks the token embedding",
            expected="a text decoder outside of the tower",
        )
    return decoder


def _vision_kinds(config: Any) -> tuple[type, ...]:
    configs = [getattr(config, name, None) for name in ("vision_config", "vision_tower_config", "image_config")]
    return tuple(type(kind) for kind in configs if kind is not None and not isinstance(kind, dict))


def _outermost(model: nn.Module, wanted: Any) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for name, module in _below(model):
        if not any(name.startswith(f"{outer}.") for outer in found) and wanted(module):
            found[name] = module
    return found


def _below(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, module) for name, module in model.named_modules() if name)


def _holds(module: nn.Module, inner: nn.Module | None) -> bool:
    return any(each is inner for each in module.modules())
