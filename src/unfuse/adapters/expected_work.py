"""Operations that the stages of a model must execute: from the config, or by the model's own modules on meta tensors.

A linear layer has 2 operations per weight and row, a convolution 2 per weight and output position. Attention of q
positions to k positions has 4 q k per number of a head: scores and weighted sum, without savings of a causal mask
(Kaplan et al., arXiv 2001.08361, appendix B).
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
from torch.utils._pytree import tree_map
from transformers import DynamicCache

from unfuse.engines.language_model import LanguageModel
from unfuse.engines.positions import following
from unfuse.errors import UnfuseError
from unfuse.measure.products import Products, counting_this_thread, linear
from unfuse.stages import Prompt

T = TypeVar("T")
Mover = Callable[[Any], Any]
CONFIG: Final = "config"
_LLAMA_LIKE: Final = frozenset({"llama", "mistral", "qwen2", "qwen2_5_vl_text", "qwen3_vl_text", "EventChat_llama"})
"""Model types with the layers of LLaMA: four projections of attention and a gated MLP."""
_CLIP: Final = "clip_vision_model"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpectedWork:
    """Work of one sample."""

    encode: Products
    prefill: Products
    step: Products
    """The first decode step after the prompt; a later step attends to a few more positions."""
    source: str
    """Origin of the numbers, for a report."""


def layers(rows: int, *widths: tuple[int, int]) -> Products:
    """Return the work of linear layers of the given input and output widths."""
    return sum((linear(rows, width, columns) for width, columns in widths), Products())


def clip_tower(config: Any, images: int) -> Products | None:
    """Return the work of a CLIP tower (arXiv 2103.00020) with all its layers; None for a config of another tower."""
    if getattr(config, "model_type", None) != _CLIP:
        return None
    width, inner = config.hidden_size, config.intermediate_size
    patches = (config.image_size // config.patch_size) ** 2
    rows = images * (patches + 1)
    patch = linear(images * patches, config.num_channels * config.patch_size**2, width)
    layer = layers(rows, (width, 4 * width), (width, inner), (inner, width))
    attention = Products(batched=4 * rows * (patches + 1) * width)
    return patch + (layer + attention) * int(config.num_hidden_layers)


def llama_text(config: Any, rows: int, context: int) -> Products | None:
    """Return the work of a LLaMA over ``rows`` new positions, with the head at the last; None for another decoder.

    Args:
        config: text config.
        rows: new positions.
        context: cached and new positions.
    """
    if getattr(config, "model_type", None) not in _LLAMA_LIKE:
        return None
    width, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    size = getattr(config, "head_dim", None) or width // heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    projections = (width, (heads + 2 * keys) * size), (heads * size, width)
    layer = layers(rows, *projections, (width, 2 * inner), (inner, width))
    attention = Products(batched=4 * rows * context * heads * size)
    return (layer + attention) * int(config.num_hidden_layers) + linear(1, width, config.vocab_size)


def text_work(model: Any, language: LanguageModel, prompt: Prompt, rows: int) -> tuple[Products, Products, str]:
    """Return the work of a prefill pass and of the first decode step, and where the numbers come from.

    Args:
        model: the fused model.
        language: its text side.
        prompt: the prompt.
        rows: rows that the engine computes for the prompt, padding included.
    """
    config, length = model.config.get_text_config(), prompt.length
    prefill, step = llama_text(config, rows, length), llama_text(config, 1, length + 1)
    if prefill is not None and step is not None:
        return prefill, step, CONFIG
    (whole, step), source = on_meta(model, lambda network, move: _counted_text(network, language, prompt, move))
    # The head runs on one row of the prompt, so two passes of different lengths give the work of a row.
    row = Products(
        {width: (n - step.by_width.get(width, 0)) // max(length - 1, 1) for width, n in whole.by_width.items()}
    )
    return whole + row * (rows - length), step, source


def on_meta(model: Any, count: Callable[[Any, Mover], T]) -> tuple[T, str]:
    """Count what a model's own modules do, on a copy without memory; on the model itself where values decide.

    Args:
        model: the fused model.
        count: counts; takes a network and a function that moves tensors to its device.

    Returns:
        The counts, and their source as text.
    """
    try:
        with torch.device("meta"), torch.no_grad():
            network = type(model)(deepcopy(model.config)).eval()
        return count(network, _to_meta), "own modules on meta tensors"
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AssertionError, UnfuseError):
        # Grids and masks whose values decide the shapes.
        return count(model, lambda value: value), "own modules"


@torch.no_grad()
def _counted_text(network: Any, language: LanguageModel, prompt: Prompt, move: Mover) -> tuple[Products, Products]:
    """Count the decoder's forward on a prompt, and on a token after it."""
    if network.device.type == "meta":
        language = LanguageModel(
            network.get_decoder(), network.get_output_embeddings(), network.get_input_embeddings(), ()
        )
    inputs = {"decoder_inputs": move(dict(prompt.decoder_inputs)), "scene_inputs": move(dict(prompt.scene_inputs))}
    moved = Prompt(inputs_embeds=move(prompt.inputs_embeds), position_ids=move(prompt.position_ids), **inputs)
    cache = DynamicCache()
    with counting_this_thread() as prefill:
        logits = language.prompt_logits(moved, cache)
    embeds = language.embed(logits.argmax(-1, keepdim=True))
    with counting_this_thread() as step:
        language.logits(embeds, cache, position_ids=following(moved.position_ids))
    return prefill.products, step.products


def _to_meta(value: Any) -> Any:
    """Return tensors, and containers of tensors, on the meta device."""
    return tree_map(lambda each: each.to("meta") if isinstance(each, torch.Tensor) else each, value)
