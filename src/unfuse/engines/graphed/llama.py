"""Finds the weights of a LLaMA in a Hugging Face decoder, by its structure.

Supported: LLaMA (Touvron et al., arXiv 2302.13971) and models that differ from it in sizes, grouped-query attention,
biases, norms of heads, tied embeddings or rotary scaling. A decoder with the same structure that computes something
else is detected by ``engine``: it compares its logits with the model's own.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from unfuse.engines.graphed.kernels.attention_common import Heads
from unfuse.engines.language_model import LanguageModel
from unfuse.engines.unsupported import Unsupported
from unfuse.measure import products

_STATIC_ROTARY: Final = frozenset({"default", "linear", "llama3", "yarn"})
"""Rotary types with frequencies that do not depend on the length of the prompt."""
_UNSUPPORTED_SETTINGS: Final = (
    "logit_scale",
    "logits_scaling",
    "residual_multiplier",
    "embedding_multiplier",
    "attn_logit_softcapping",
)
_LAYER: Final = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION: Final = {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm", "rotary_emb"}
_MLP: Final = {"gate_proj", "up_proj", "down_proj", "act_fn"}


@dataclass(frozen=True, slots=True)
class Linear:
    """One weight matrix, or several that are stacked in memory."""

    weight: torch.Tensor
    """``[N, K]``"""
    bias: torch.Tensor | None
    """``[N]``"""


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer."""

    input_norm_weight: torch.Tensor
    qkv: Linear
    head_norm_weights: tuple[torch.Tensor, torch.Tensor] | None
    """Weights of the RMS norms of queries and keys, ``[D]`` each."""
    out: Linear
    post_norm_weight: torch.Tensor
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class Llama:
    """Weights and sizes. The weights are the model's own memory."""

    embedding: torch.Tensor
    """``[V, H]``"""
    layers: tuple[Layer, ...]
    final_norm_weight: torch.Tensor
    head: Linear
    heads: Heads
    eps: float
    scale: float
    """Factor of the attention scores."""
    inv_freq: torch.Tensor
    """float32 ``[D / 2]``: radians per position."""
    axes: torch.Tensor
    """int32 ``[D / 2]``: rotary axis of each pair of dimensions (M-RoPE sections)."""
    rotary_scaling: float

    @property
    def hidden(self) -> int:
        """H."""
        return self.embedding.shape[1]

    @property
    def inner(self) -> int:
        """Width of the MLP."""
        return self.layers[0].down.weight.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of all weights."""
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        """Device of all weights."""
        return self.embedding.device


def find_llama(language: LanguageModel) -> Llama:
    """Find the weights, and stack matrices that have the same input.

    The model's own modules keep working: their weights become views of the stacked matrices, so each weight is stored
    once.

    Raises:
        Unsupported: the decoder is no LLaMA, or differs in a way that is not supported.
    """
    decoder: Any = language.decoder
    name = type(decoder).__name__
    for part in ("layers", "norm", "rotary_emb", "config"):
        if not hasattr(decoder, part):
            raise Unsupported(f"{name} has no {part}")
    config = decoder.config
    if found := [key for key in _UNSUPPORTED_SETTINGS if getattr(config, key, None) not in (None, 1.0)]:
        raise Unsupported(f"{name} has {found[0]}")
    if getattr(config, "sliding_window", None) and any(
        kind != "full_attention" for kind in getattr(config, "layer_types", None) or ["sliding_attention"]
    ):
        raise Unsupported(f"{name} attends to a sliding window")
    if not isinstance(language.embed, nn.Embedding) or type(language.embed).forward is not nn.Embedding.forward:
        raise Unsupported(f"{type(language.embed).__name__} is no plain embedding")
    modules = list(decoder.layers)
    for module in modules:
        _require_parts(module)
    attention = modules[0].self_attn
    size = int(attention.head_dim)
    heads = Heads(attention.q_proj.out_features // size, attention.k_proj.out_features // size, size)
    if size % 2 or size > 256 or heads.num_heads % heads.num_kv_heads:
        raise Unsupported(f"{heads.num_heads} heads of {size} on {heads.num_kv_heads}")
    head = _plain(language.head, "the head")
    dtypes = {parameter.dtype for parameter in decoder.parameters()} | {head.weight.dtype}
    devices = {parameter.device for parameter in decoder.parameters()} | {
        head.weight.device,
        language.embed.weight.device,
    }
    if len(dtypes) != 1 or len(devices) != 1:
        raise Unsupported(f"weights of several dtypes or devices ({', '.join(map(str, [*dtypes, *devices]))})")
    inv_freq, axes, scaling = _rotary(decoder, size)
    return Llama(
        embedding=language.embed.weight.detach(),
        layers=tuple(map(_joined_layer, modules)),
        final_norm_weight=_norm_weight(decoder.norm),
        head=Linear(head.weight.detach(), None if head.bias is None else head.bias.detach()),
        heads=heads,
        eps=float(decoder.norm.variance_epsilon),
        scale=float(attention.scaling),
        inv_freq=inv_freq,
        axes=axes,
        rotary_scaling=scaling,
    )


def _joined_layer(module: Any) -> Layer:
    layer = _layer(module)
    # Joining frees the separate matrices, but the joined matrices are larger, so the allocator cannot reuse the freed
    # memory. Give the memory back to the device; otherwise up to half of the model's size stays reserved.
    torch.cuda.empty_cache()
    return layer


def _require_parts(layer: Any) -> None:
    name = type(layer).__name__
    parts = {key for key, _ in layer.named_children()}
    if parts != _LAYER:
        raise Unsupported(f"{name} is made of {', '.join(sorted(parts ^ _LAYER))} besides or without")
    if more := {key for key, _ in layer.self_attn.named_children()} - _ATTENTION:
        raise Unsupported(f"its attention has {', '.join(sorted(more))}")
    if {key for key, _ in layer.mlp.named_children()} != _MLP:
        raise Unsupported(f"{type(layer.mlp).__name__} has other parts")
    if not isinstance(layer.mlp.act_fn, nn.SiLU) and "silu" not in type(layer.mlp.act_fn).__name__.lower():
        raise Unsupported(f"{type(layer.mlp.act_fn).__name__} is not SiLU")


def _layer(module: Any) -> Layer:
    attention, mlp = module.self_attn, module.mlp
    norms = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    norm_weights = None
    if norms[0] is not None:
        norm_weights = _norm_weight(norms[0]), _norm_weight(norms[1])
        if norm_weights[0].shape != (attention.head_dim,):
            raise Unsupported("queries are normed across heads")
    return Layer(
        input_norm_weight=_norm_weight(module.input_layernorm),
        qkv=joined([attention.q_proj, attention.k_proj, attention.v_proj]),
        head_norm_weights=norm_weights,
        out=joined([attention.o_proj]),
        post_norm_weight=_norm_weight(module.post_attention_layernorm),
        gate_up=joined([mlp.gate_proj, mlp.up_proj]),
        down=joined([mlp.down_proj]),
    )


def _norm_weight(norm: Any) -> torch.Tensor:
    if not type(norm).__name__.endswith("RMSNorm") or not hasattr(norm, "variance_epsilon"):
        raise Unsupported(f"{type(norm).__name__} is no RMS norm of LLaMA's kind")
    norm_weight: torch.Tensor = norm.weight.detach()
    return norm_weight


def _plain(linear: Any, what: str) -> nn.Linear:
    if type(linear) is not nn.Linear:
        raise Unsupported(f"{what} is {type(linear).__name__}")
    return linear


def joined(linears: Sequence[Any]) -> Linear:
    """Stack the matrices; a second call for the same matrices finds them stacked."""
    linears = [_plain(linear, "a projection") for linear in linears]
    weight = _join([linear.weight for linear in linears])
    biases = [linear.bias for linear in linears]
    if all(bias is None for bias in biases):
        return Linear(weight, None)
    for linear in linears:
        if linear.bias is None:
            # Qwen2 has biases on queries, keys and values; no supported family has a bias on some of them only.
            raise Unsupported("some projections have a bias and their neighbours have none")
    return Linear(weight, _join(biases))


def _join(parameters: Sequence[nn.Parameter]) -> torch.Tensor:
    first = parameters[0]
    rows = sum(len(parameter) for parameter in parameters)
    follows = all(
        after.data_ptr() == before.data_ptr() + before.numel() * before.element_size() and before.is_contiguous()
        for before, after in itertools.pairwise(parameters)
    )
    same = len({parameter.untyped_storage().data_ptr() for parameter in parameters}) == 1
    if not (follows and same):
        whole = torch.cat([parameter.detach() for parameter in parameters])
        for parameter, part in zip(parameters, whole.split([len(p) for p in parameters]), strict=True):
            parameter.data = part
    return first.detach().as_strided((rows, *first.shape[1:]), first.stride())


def _rotary(decoder: Any, size: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    rotary = decoder.rotary_emb
    kind = getattr(rotary, "rope_type", "default")
    inv_freq = rotary.inv_freq.detach().float().contiguous()
    if kind not in _STATIC_ROTARY:
        raise Unsupported(f"rotary angles of kind {kind!r}")
    if inv_freq.shape != (size // 2,):
        raise Unsupported(f"rotary angles for {2 * len(inv_freq)} of {size} dimensions")
    axes = _axes(rotary, size // 2)
    return inv_freq, axes.to(inv_freq.device), float(getattr(rotary, "attention_scaling", 1.0))


def _axes(rotary: Any, pairs: int) -> torch.Tensor:
    """Return the rotary axis of each pair of dimensions, int32 ``[pairs]``."""
    sections = getattr(rotary, "mrope_section", None)
    if sections is None:
        return torch.zeros(pairs, dtype=torch.int32)
    if sum(sections) != pairs:
        raise Unsupported(f"rotary sections {list(sections)}")
    axes = torch.repeat_interleave(torch.arange(len(sections), dtype=torch.int32), torch.tensor(sections))
    device = rotary.inv_freq.device
    steps = torch.eye(len(sections), dtype=torch.long, device=device)[:, None]
    _, sines = rotary(torch.zeros(1, 1, 1, device=device), steps)
    if sines.dim() == 3:
        # Qwen3-VL interleaves the axes: a step along one axis rotates only the pairs of this axis.
        axes = (sines[0, :, :pairs] != 0).int().argmax(0).to(axes)
    return axes


def token_products(llama: Llama) -> products.Products:
    """Return the work of a pass over one token, without attention. The number of tokens is known on the device only."""
    joined_weights = (x.weight for layer in llama.layers for x in (layer.qkv, layer.out, layer.gate_up, layer.down))
    weights = (*joined_weights, llama.head.weight)
    return sum((products.linear(1, weight.shape[1], len(weight)) for weight in weights), products.Products())
