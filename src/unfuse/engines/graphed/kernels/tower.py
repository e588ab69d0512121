"""Kernels between the matrix products of a vision transformer: layer norm, activation, attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from unfuse.engines.graphed.kernels.launch import launch, mma_padded, overlap

if TYPE_CHECKING:
    import torch

ACTIVATIONS: Final = {"quick_gelu": 0, "gelu": 1, "gelu_tanh": 2}


@triton.jit
def _layer_norm(
    out, residual, x, norm_weight, shift, bias, eps, C: tl.constexpr, BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < C
    scale_by = tl.load(norm_weight + at, mask=inside, other=0.0).to(tl.float32)
    shift_by = tl.load(shift + at, mask=inside, other=0.0).to(tl.float32)
    next_bias = tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    if DEPENDENT:
        gdc_wait()
    if OVERLAP:
        gdc_launch_dependents()
    value = tl.load(x + row * C + at, mask=inside, other=0.0).to(tl.float32)
    centered = tl.where(inside, value - tl.sum(value, axis=0) / C, 0.0)
    scale = tl.rsqrt(tl.sum(centered * centered, axis=0) / C + eps)
    tl.store(out + row * C + at, (centered * scale * scale_by + shift_by).to(out.dtype.element_ty), mask=inside)
    tl.store(residual + row * C + at, (value + next_bias).to(out.dtype.element_ty), mask=inside)


def layer_norm(
    out: torch.Tensor,
    residual: torch.Tensor,
    x: torch.Tensor,
    norm_weight: torch.Tensor,
    shift: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
) -> None:
    """Compute a layer norm (Ba et al., arXiv 1607.06450) and add the next product's bias to the residual.

    Args:
        out: ``[R, C]``, normalised.
        residual: ``[R, C]``, ``x + bias``; may be ``x``.
        x: ``[R, C]``.
        norm_weight: ``[C]`` of the norm.
        shift: ``[C]`` of the norm.
        bias: ``[C]`` of the product that is added to the residual next.
        eps: of the norm.
    """
    rows, width = x.shape
    block = triton.next_power_of_2(width)
    launch(
        _layer_norm, (rows,), out, residual, x, norm_weight, shift, bias, eps,
        C=width, BLOCK=block, num_warps=min(8, max(1, block // 256)), **overlap(x),
    )  # fmt: skip


@triton.jit
def _activate(x, count, KIND: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr, DEPENDENT: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if DEPENDENT:
        gdc_wait()
    if OVERLAP:
        gdc_launch_dependents()
    value = tl.load(x + at, mask=at < count, other=0.0).to(tl.float32)
    if KIND == 0:
        value = value * tl.sigmoid(1.702 * value)
    elif KIND == 1:
        value = 0.5 * value * (1.0 + tl.erf(value * 0.7071067811865476))
    else:
        inner = 0.7978845608028654 * (value + 0.044715 * value * value * value)
        # tanh(z) = 2 sigmoid(2 z) - 1 is -1 long before the exponential overflows.
        value = value * tl.sigmoid(tl.maximum(2.0 * inner, -60.0))
    tl.store(x + at, value.to(x.dtype.element_ty), mask=at < count)


def activate(x: torch.Tensor, kind: str) -> None:
    """Apply an activation in place (GELU: Hendrycks and Gimpel, arXiv 1606.08415).

    Args:
        x: contiguous, any shape.
        kind: ``quick_gelu`` (CLIP), ``gelu`` or ``gelu_tanh`` (SigLIP).
    """
    count = x.numel()
    launch(
        _activate, (triton.cdiv(count, 4096),), x, count,
        KIND=ACTIVATIONS[kind], BLOCK=4096, num_warps=8, **overlap(x),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class TowerConfig:
    """Tile config of tower attention."""

    rows: int
    """Queries per program."""
    positions: int
    """Positions per iteration."""
    warps: int
    stages: int


CANDIDATES: Final = (
    TowerConfig(64, 64, 4, 3),
    TowerConfig(128, 64, 8, 3),
    TowerConfig(64, 64, 4, 2),
    TowerConfig(128, 64, 4, 2),
)
FLOAT32_CONFIG: Final = TowerConfig(64, 32, 8, 2)
"""See ``extend_attention.FLOAT32_CONFIG``."""


@triton.jit
def _attend(
    q, base, start, P, factor, row_max, row_sum, acc,
    WIDTH: tl.constexpr, C: tl.constexpr, D: tl.constexpr, D_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
    WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    position, dims = start + tl.arange(0, BLOCK), tl.arange(0, D_BLOCK)
    dim_mask = dims < D
    keys = base + C + position[None, :] * WIDTH + dims[:, None]
    values = base + 2 * C + position[:, None] * WIDTH + dims[None, :]
    if WHOLE and D == D_BLOCK:
        k, v = tl.load(keys), tl.load(values)
    elif WHOLE:
        k, v = tl.load(keys, mask=dim_mask[:, None], other=0.0), tl.load(values, mask=dim_mask[None, :], other=0.0)
    else:
        present = position < P
        k = tl.load(keys, mask=present[None, :] & dim_mask[:, None], other=0.0)
        v = tl.load(values, mask=present[:, None] & dim_mask[None, :], other=0.0)
    scores = tl.dot(q, k, input_precision=PRECISION)
    if not WHOLE:
        scores = tl.where((position < P)[None, :], scores, float("-inf"))
    new_max = tl.maximum(row_max, tl.max(scores, axis=1) * factor)
    rescale = tl.exp2(row_max - new_max)
    p = tl.exp2(scores * factor - new_max[:, None])
    row_sum = row_sum * rescale + tl.sum(p, axis=1)
    acc = tl.dot(p.to(v.dtype), v, acc * rescale[:, None], input_precision=PRECISION)
    return new_max, row_sum, acc


@triton.jit
def _tower_attention(
    out, qkv, P, factor,
    HEADS: tl.constexpr, D: tl.constexpr, D_BLOCK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    REST: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr, OVERLAP: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    tile, head, image = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if DEPENDENT:
        gdc_wait()
    if OVERLAP:
        gdc_launch_dependents()
    width: tl.constexpr = HEADS * D
    row, dims = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, D_BLOCK)
    query_mask = (row < P)[:, None] & (dims < D)[None, :]
    base = qkv + image.to(tl.int64) * P * (3 * width) + head * D
    q = tl.load(base + row[:, None] * (3 * width) + dims[None, :], mask=query_mask, other=0.0)
    row_max = tl.full([ROWS], float("-inf"), tl.float32)
    row_sum = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, D_BLOCK], tl.float32)
    whole = P // BLOCK * BLOCK
    for start in tl.range(0, whole, BLOCK, num_stages=STAGES):
        row_max, row_sum, acc = _attend(
            q, base, start, P, factor, row_max, row_sum, acc, 3 * width, width, D, D_BLOCK, BLOCK, True, PRECISION
        )
    if REST > 0:
        row_max, row_sum, acc = _attend(
            q, base, whole, P, factor, row_max, row_sum, acc, 3 * width, width, D, D_BLOCK, REST, False, PRECISION
        )
    target = out + (image.to(tl.int64) * P + row[:, None]) * width + head * D + dims[None, :]
    tl.store(target, (acc / row_sum[:, None]).to(out.dtype.element_ty), mask=query_mask)


def tower_attention(
    out: torch.Tensor, qkv: torch.Tensor, images: int, heads: int, scale: float, config: TowerConfig
) -> None:
    """Compute full attention within each image (FlashAttention-2: Dao, arXiv 2307.08691).

    Args:
        out: ``[images * P, heads * D]``.
        qkv: ``[images * P, 3 * heads * D]``.
        images: number of images.
        heads: number of heads. Each patch of an image is a row, and its class token too.
        scale: usually ``D ** -0.5``; positive.
        config: tile config.
    """
    positions, size = len(qkv) // images, out.shape[1] // heads
    rest = positions % config.positions
    launch(
        _tower_attention, (triton.cdiv(positions, config.rows), heads, images), out, qkv, positions,
        # In base 2 the exponential is one instruction.
        scale * 1.4426950408889634,
        HEADS=heads, D=size, D_BLOCK=mma_padded(size), ROWS=config.rows, BLOCK=config.positions,
        # The class token alone after whole blocks needs only a small block.
        REST=mma_padded(rest) if rest else 0, STAGES=config.stages,
        PRECISION="ieee" if qkv.element_size() == 4 else "tf32", num_warps=config.warps, **overlap(out),
    )  # fmt: skip
