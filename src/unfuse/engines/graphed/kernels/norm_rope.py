"""Kernels between the matrix products: RMS norm, gated activation, rotary embedding, start of a decode step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from unfuse.engines.graphed.kernels.launch import launch, overlap

if TYPE_CHECKING:
    import torch


@triton.jit
def _rms_norm(
    out, x, norm_weight, eps, K: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr, DEPENDENT: tl.constexpr
):
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    inside = at < K
    # This kernel is short: the next product may prefetch its weights before the previous kernel has finished.
    if OVERLAP:
        gdc_launch_dependents()
    scale = tl.load(norm_weight + at, mask=inside, other=0.0)
    if DEPENDENT:
        gdc_wait()
    value = tl.load(x + row * K + at, mask=inside, other=0.0).to(tl.float32)
    value *= tl.rsqrt(tl.sum(value * value, axis=0) / K + eps)
    # Rounded before the norm weight, as in the model.
    value = value.to(out.dtype.element_ty).to(tl.float32) * scale.to(tl.float32)
    tl.store(out + row * K + at, value.to(out.dtype.element_ty), mask=inside)


def rms_norm(out: torch.Tensor, x: torch.Tensor, norm_weight: torch.Tensor, eps: float, *, rows: int) -> None:
    """Normalise the first rows of ``x [R, K]`` (RMS norm: Zhang and Sennrich, arXiv 1910.07467)."""
    k = x.shape[1]
    block = triton.next_power_of_2(k)
    warps = min(16, max(1, block // 512))
    launch(_rms_norm, (rows,), out, x, norm_weight, eps, K=k, BLOCK=block, num_warps=warps, **overlap(x))


@triton.jit
def _gate(out, gate_up, N: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr, DEPENDENT: tl.constexpr):
    row = tl.program_id(0)
    if DEPENDENT:
        gdc_wait()
    if OVERLAP:
        gdc_launch_dependents()
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < N
    base = gate_up + row.to(tl.int64) * (2 * N)
    value = tl.load(base + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(base + N + at, mask=inside, other=0.0).to(tl.float32)
    # The activation is rounded before the product, as in the model.
    value = (value * tl.sigmoid(value)).to(out.dtype.element_ty).to(tl.float32) * up
    tl.store(out + row.to(tl.int64) * N + at, value.to(out.dtype.element_ty), mask=inside)


def gate(out: torch.Tensor, gate_up: torch.Tensor) -> None:
    """Compute ``silu(gate) * up`` from ``[R, 2 N]`` to ``[R, N]``."""
    rows, n = out.shape
    launch(_gate, (rows, triton.cdiv(n, 2048)), out, gate_up, N=n, BLOCK=2048, num_warps=8, **overlap(out))


@triton.jit
def _store_cos_sin(
    cosine, sine, positions, inv_freq, axes, scaling, row, stride, HALF: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.arange(0, BLOCK)
    inside = at < HALF
    axis = tl.load(axes + at, mask=inside, other=0)
    position = tl.load(positions + axis * stride + row, mask=inside, other=0).to(tl.float32)
    angle = position * tl.load(inv_freq + at, mask=inside, other=0.0)
    # Rounded to the model's dtype, as in the model.
    dtype = cosine.dtype.element_ty
    tl.store(cosine + row * HALF + at, (tl.cos(angle) * scaling).to(dtype), mask=inside)
    tl.store(sine + row * HALF + at, (tl.sin(angle) * scaling).to(dtype), mask=inside)


@triton.jit
def _rotary_cos_sin(
    cosine, sine, positions, inv_freq, axes, scaling, stride, HALF: tl.constexpr, BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    if DEPENDENT:
        gdc_wait()
    if OVERLAP:
        gdc_launch_dependents()
    _store_cos_sin(cosine, sine, positions, inv_freq, axes, scaling, tl.program_id(0), stride, HALF, BLOCK)


def rotary_cos_sin(
    cosine: torch.Tensor,
    sine: torch.Tensor,
    positions: torch.Tensor,
    inv_freq: torch.Tensor,
    axes: torch.Tensor,
    scaling: float,
) -> None:
    """Compute cosine and sine of the rotary embedding for every row (Su et al., arXiv 2104.09864).

    Args:
        cosine: ``[R, D / 2]``, out.
        sine: ``[R, D / 2]``, out.
        positions: int ``[A, R]``, on every rotary axis; text models have one axis.
        inv_freq: float32 ``[D / 2]``, radians per position.
        axes: int32 ``[D / 2]``, rotary axis of each pair of dimensions (M-RoPE, arXiv 2409.12191, has three axes).
        scaling: factor of cosine and sine.
    """
    half = cosine.shape[1]
    launch(
        _rotary_cos_sin, (positions.shape[1],),
        cosine, sine, positions, inv_freq, axes, scaling, positions.stride(0),
        HALF=half, BLOCK=triton.next_power_of_2(half), num_warps=1, **overlap(cosine),
    )  # fmt: skip


@triton.jit
def _begin_step(
    x, cosine, sine, write_position, token, length, position, capacity, embedding, inv_freq, axes, scaling,
    H: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, HALF_BLOCK: tl.constexpr, FRAGMENTS: tl.constexpr,
    OVERLAP: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    if DEPENDENT:
        gdc_wait()
    if OVERLAP:
        gdc_launch_dependents()
    _store_cos_sin(cosine, sine, position, inv_freq, axes, scaling, row, 0, HALF, HALF_BLOCK)
    at = tl.arange(0, BLOCK)
    # An invalid token is -1. The host has not read it yet, and will drop all later tokens of the row.
    embedded = tl.maximum(tl.load(token + row).to(tl.int64), 0)
    value = tl.load(embedding + embedded * H + at, mask=at < H, other=0.0)
    stored_at = at
    if FRAGMENTS:
        # The inverse of ``megakernel.fragment_order``.
        chunk = at % 64 // 8
        word = (chunk // 2 % 2 * 4 + at % 8 // 2) * 4 + chunk // 4 * 2 + chunk % 2
        stored_at = at // 64 * 64 + word * 2 + at % 2
    tl.store(x + row * H + stored_at, value, mask=at < H)
    # A row that has ended, and a padding row, overwrite their last position.
    target = tl.minimum(tl.load(length + row), tl.load(capacity + row) - 1)
    tl.store(write_position + row, target)
    tl.store(length + row, target + 1)
    rotated = tl.load(position + row)
    # Every thread must have read the position before it is incremented.
    tl.debug_barrier()
    tl.store(position + row, rotated + 1)


def begin_step(
    x: torch.Tensor,
    cosine: torch.Tensor,
    sine: torch.Tensor,
    write_position: torch.Tensor,
    token: torch.Tensor,
    length: torch.Tensor,
    position: torch.Tensor,
    capacity: torch.Tensor,
    embedding: torch.Tensor,
    inv_freq: torch.Tensor,
    axes: torch.Tensor,
    scaling: float,
    *,
    fragments: bool = False,
) -> None:
    """Start a decode step: embed one token per row, compute its cosine and sine, and increment its positions.

    Args:
        x: ``[B, H]``, out.
        cosine: ``[B, D / 2]``, out.
        sine: ``[B, D / 2]``, out.
        write_position: int32 ``[B]``, out: cache position of this step's keys and values.
        token: int64 ``[B]``; an invalid one (-1) is embedded as 0.
        length: int32 ``[B]``, number of cached positions; incremented.
        position: int32 ``[B]``, rotary position of the token on every axis; incremented.
        capacity: int32 ``[B]``, capacity of the cache in positions.
        embedding: ``[V, H]``.
        inv_freq: as ``rotary_cos_sin``.
        axes: as ``rotary_cos_sin``.
        scaling: as ``rotary_cos_sin``.
        fragments: store ``x`` in the order of ``megakernel.fragment_order``.
    """
    h, half = embedding.shape[1], cosine.shape[1]
    launch(
        _begin_step, (len(token),),
        x, cosine, sine, write_position, token, length, position, capacity, embedding, inv_freq, axes, scaling,
        H=h, HALF=half, BLOCK=triton.next_power_of_2(h), HALF_BLOCK=triton.next_power_of_2(half), FRAGMENTS=fragments,
        num_warps=8, **overlap(x),
    )  # fmt: skip
