"""Extend (append) attention: up to 64 new rows of a cached prompt, and the write of their keys and values.

A few rows give few programs, so several programs divide the cached positions of a head. One of them also processes the
new rows: it norms and rotates their keys itself, so no other kernel has to run first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from unfuse.engines.graphed.kernels.attention_common import Heads
from unfuse.engines.graphed.kernels.launch import LINE, UNIT, launch, mma_padded, overlap, prefetch_l2
from unfuse.engines.graphed.kernels.skinny_gemm import padded_rows

if TYPE_CHECKING:
    import torch

    from unfuse.engines.graphed.kernels.prefill_attention import PackedSequences

_PREFETCHED: Final = 128
"""Cached positions that each program prefetches before the previous kernel has finished; a power of two."""


@dataclass(frozen=True, slots=True)
class ExtendConfig:
    """Tile config of extend attention."""

    splits: int
    """Programs per head that divide its cached positions (split-K)."""
    positions: int
    """Cached positions per iteration."""
    warps: int
    stages: int


CANDIDATES: Final = tuple(
    ExtendConfig(*config)
    for config in (
        (4, 64, 8, 3),
        (2, 128, 8, 2),
        (3, 128, 8, 2),
        (3, 64, 4, 3),
        (6, 64, 4, 2),
        (6, 32, 4, 3),
        (6, 64, 8, 2),
    )
)
FLOAT32_CONFIG: Final = ExtendConfig(4, 32, 8, 2)
"""For float32. Its products use no tensor cores and the compiler unrolls them, so small tiles compile much faster."""


@triton.jit
def _norm_and_rotate(base, norm_weight, cosine, sine, mask, half_mask, eps, D: tl.constexpr, NORM: tl.constexpr):
    """Return rows of one head, normed and rotated, as two halves in their own dtype."""
    half: tl.constexpr = D // 2
    dtype: tl.constexpr = base.dtype.element_ty
    dims = tl.arange(0, cosine.shape[1])
    low = tl.load(base + dims[None, :], mask=mask, other=0.0).to(tl.float32)
    high = tl.load(base + half + dims[None, :], mask=mask, other=0.0).to(tl.float32)
    if NORM:
        rms = tl.rsqrt((tl.sum(low * low, axis=1) + tl.sum(high * high, axis=1)) / D + eps)
        low = (low * rms[:, None]).to(dtype).to(tl.float32)
        high = (high * rms[:, None]).to(dtype).to(tl.float32)
        low *= tl.load(norm_weight + dims, mask=half_mask, other=0.0).to(tl.float32)[None, :]
        high *= tl.load(norm_weight + half + dims, mask=half_mask, other=0.0).to(tl.float32)[None, :]
    return (low * cosine - high * sine).to(dtype), (high * cosine + low * sine).to(dtype)


@triton.jit
def _attend(scores, v, row_max, row_sum, acc, PRECISION: tl.constexpr):
    """Update the running softmax by a block of scores and values."""
    new_max = tl.maximum(row_max, tl.max(scores, axis=1))
    # A row may see none of these positions: avoid inf - inf.
    safe = tl.where(new_max == float("-inf"), 0.0, new_max)
    rescale = tl.exp2(row_max - safe)
    p = tl.exp2(scores - safe[:, None])
    row_sum = row_sum * rescale + tl.sum(p, axis=1)
    acc = tl.dot(p.to(v.dtype), v, acc * rescale[:, None], input_precision=PRECISION)
    return new_max, row_sum, acc


@triton.jit
def _attend_cached(
    low, high, keys, values, position, end, factor, row_max, row_sum, acc, D: tl.constexpr, D_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend to a block of cached positions that all rows see."""
    half: tl.constexpr = D // 2
    in_range = position < end
    half_dims, dims = tl.arange(0, low.shape[1]), tl.arange(0, D_BLOCK)
    k_at = keys + position[None, :].to(tl.int64) * D + half_dims[:, None]
    key_mask = in_range[None, :] & (half_dims < half)[:, None]
    scores = tl.dot(low, tl.load(k_at, mask=key_mask, other=0.0), input_precision=PRECISION)
    scores = tl.dot(high, tl.load(k_at + half, mask=key_mask, other=0.0), scores, input_precision=PRECISION)
    scores = tl.where(in_range[None, :], scores * factor, float("-inf"))
    v_at = values + position[:, None].to(tl.int64) * D + dims[None, :]
    v = tl.load(v_at, mask=in_range[:, None] & (dims < D)[None, :], other=0.0)
    return _attend(scores, v, row_max, row_sum, acc, PRECISION)


@triton.jit
def _extend_attention(
    out, qkv, base_pointer, cache_at, capacity, start, count, first, shared_at, shared_capacity, shared_count,
    cosines, sines, q_norm_weight, k_norm_weight, partial, semaphores, eps, scale, layer,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, D_BLOCK: tl.constexpr, HALF_BLOCK: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr, SPLITS: tl.constexpr, SHARED: tl.constexpr,
    NORM: tl.constexpr, PRECISION: tl.constexpr, PREFETCH: tl.constexpr, OVERLAP: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    head, sequence, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    group: tl.constexpr = HEADS // KV_HEADS
    half: tl.constexpr = D // 2
    width: tl.constexpr = (HEADS + 2 * KV_HEADS) * D
    dtype: tl.constexpr = qkv.dtype.element_ty
    num_rows = tl.load(count + sequence).to(tl.int32)
    num_cached = tl.load(start + sequence).to(tl.int32)
    kv_stride = tl.load(capacity + sequence).to(tl.int64) * D
    keys = base_pointer + tl.load(cache_at + sequence) * UNIT + (layer * (2 * KV_HEADS) + head // group) * kv_stride
    values = keys + KV_HEADS * kv_stride
    split_length = tl.cdiv(tl.cdiv(num_cached, SPLITS), BLOCK) * BLOCK
    split_start = split * split_length
    split_end = tl.minimum(num_cached, split_start + split_length)
    dims, half_dims = tl.arange(0, D_BLOCK), tl.arange(0, HALF_BLOCK)
    if PREFETCH > 0:
        a_line: tl.constexpr = LINE // (dtype.primitive_bitwidth // 8)
        # Beyond the end of the split, prefetch its last position again.
        prefetched = tl.minimum(split_start + tl.arange(0, PREFETCH), tl.maximum(split_end - 1, 0))
        prefetched = prefetched[:, None].to(tl.int64) * D + tl.arange(0, D_BLOCK // a_line)[None, :] * a_line
        prefetch_l2(keys + prefetched)
        prefetch_l2(values + prefetched)
    if DEPENDENT:
        gdc_wait()
    if OVERLAP:
        gdc_launch_dependents()
    if num_rows == 0:
        return
    first_row = tl.load(first + sequence)
    row = tl.arange(0, ROWS)
    present, half_mask = row < num_rows, half_dims < half
    mask = present[:, None] & half_mask[None, :]
    qkv_row = qkv + (first_row + row)[:, None] * width
    angle_offset = (first_row + row)[:, None] * half + half_dims[None, :]
    cosine = tl.load(cosines + angle_offset, mask=mask, other=0.0).to(tl.float32)
    sine = tl.load(sines + angle_offset, mask=mask, other=0.0).to(tl.float32)
    low, high = _norm_and_rotate(qkv_row + head * D, q_norm_weight, cosine, sine, mask, half_mask, eps, D, NORM)
    row_max = tl.full([ROWS], float("-inf"), tl.float32)
    row_sum = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, D_BLOCK], tl.float32)
    # In base 2 the exponential is one instruction.
    factor = scale * 1.4426950408889634
    if SHARED:
        prefix_length = tl.load(shared_count + sequence).to(tl.int32)
        prefix_stride = tl.load(shared_capacity + sequence).to(tl.int64) * D
        prefix_keys = (
            base_pointer
            + tl.load(shared_at + sequence) * UNIT
            + (layer * (2 * KV_HEADS) + head // group) * prefix_stride
        )
        prefix_split_length = tl.cdiv(tl.cdiv(prefix_length, SPLITS), BLOCK) * BLOCK
        prefix_start = split * prefix_split_length
        prefix_end = tl.minimum(prefix_length, prefix_start + prefix_split_length)
        for at in tl.range(prefix_start, prefix_end, BLOCK, num_stages=STAGES):
            row_max, row_sum, acc = _attend_cached(
                low, high, prefix_keys, prefix_keys + KV_HEADS * prefix_stride, at + tl.arange(0, BLOCK), prefix_end,
                factor,
                row_max, row_sum, acc, D, D_BLOCK, PRECISION,
            )  # fmt: skip
    for at in tl.range(split_start, split_end, BLOCK, num_stages=STAGES):
        row_max, row_sum, acc = _attend_cached(
            low, high, keys, values, at + tl.arange(0, BLOCK), split_end, factor,
            row_max, row_sum, acc, D, D_BLOCK, PRECISION,
        )  # fmt: skip
    if split == SPLITS - 1:
        new_kv = qkv_row + (HEADS + head // group) * D
        k_low, k_high = _norm_and_rotate(new_kv, k_norm_weight, cosine, sine, mask, half_mask, eps, D, NORM)
        v_at = new_kv + KV_HEADS * D + dims[None, :]
        v = tl.load(v_at, mask=present[:, None] & (dims < D)[None, :], other=0.0)
        if head % group == 0:
            cache_offset = (num_cached + row)[:, None].to(tl.int64) * D
            tl.store(keys + cache_offset + half_dims[None, :], k_low, mask=mask)
            tl.store(keys + cache_offset + half + half_dims[None, :], k_high, mask=mask)
            tl.store(values + cache_offset + dims[None, :], v, mask=present[:, None] & (dims < D)[None, :])
        scores = tl.dot(low, tl.trans(k_low), input_precision=PRECISION)
        scores = tl.dot(high, tl.trans(k_high), scores, input_precision=PRECISION) * factor
        scores = tl.where((row[None, :] <= row[:, None]) & present[None, :], scores, float("-inf"))
        row_max, row_sum, acc = _attend(scores, v, row_max, row_sum, acc, PRECISION)
    is_last = True
    if SPLITS > 1:
        # The last program merges the parts, always in the same order.
        per_row: tl.constexpr = D_BLOCK + 4
        semaphore = sequence * HEADS + head
        inner = row * per_row
        part = partial + (semaphore * SPLITS + split) * (ROWS * per_row)
        tl.store(part + inner + D_BLOCK, row_max)
        tl.store(part + inner + D_BLOCK + 1, row_sum)
        tl.store(part + inner[:, None] + dims[None, :], acc)
        tl.debug_barrier()
        is_last = tl.atomic_add(semaphores + semaphore, 1, sem="acq_rel") == SPLITS - 1
    if is_last:
        if SPLITS > 1:
            tl.debug_barrier()
            tl.store(semaphores + semaphore, 0)
            row_max = tl.full([ROWS], float("-inf"), tl.float32)
            row_sum = tl.zeros([ROWS], tl.float32)
            acc = tl.zeros([ROWS, D_BLOCK], tl.float32)
            for other in tl.static_range(SPLITS):
                theirs = partial + (semaphore * SPLITS + other) * (ROWS * per_row)
                their_max = tl.load(theirs + inner + D_BLOCK, cache_modifier=".cg")
                new_max = tl.maximum(row_max, their_max)
                safe = tl.where(new_max == float("-inf"), 0.0, new_max)
                rescale, their_rescale = tl.exp2(row_max - safe), tl.exp2(their_max - safe)
                row_sum = row_sum * rescale + their_rescale * tl.load(
                    theirs + inner + D_BLOCK + 1, cache_modifier=".cg"
                )
                their_acc = tl.load(theirs + inner[:, None] + dims[None, :], cache_modifier=".cg")
                acc = acc * rescale[:, None] + their_acc * their_rescale[:, None]
                row_max = new_max
        target = out + (first_row + row)[:, None] * (HEADS * D) + head * D + dims[None, :]
        tl.store(target, (acc / row_sum[:, None]).to(dtype), mask=present[:, None] & (dims < D)[None, :])


def partial_size(heads: Heads, rows: int, splits: int, sequences: int) -> int:
    """Return the size of the partial results, in float32 numbers."""
    return sequences * heads.num_heads * padded_rows(rows) * splits * (mma_padded(heads.head_dim) + 4)


def extend_attention(
    out: torch.Tensor,
    qkv: torch.Tensor,
    sequences: PackedSequences,
    cos_sin: tuple[torch.Tensor, torch.Tensor],
    heads: Heads,
    layer: int,
    *,
    norm_weights: tuple[torch.Tensor, torch.Tensor] | None,
    eps: float,
    scale: float,
    config: ExtendConfig,
    partial: torch.Tensor,
    semaphores: torch.Tensor,
) -> None:
    """Compute causal attention of up to 64 rows to cached positions and to each other, and cache their keys and values.

    Args:
        out: ``[R, heads * D]``, R up to 64; padding rows keep their values.
        qkv: ``[R, (heads + 2 kv_heads) * D]``, before norm and rotation.
        sequences: prompts of the rows.
        cos_sin: cosine and sine of the rotary embedding, ``[R, D / 2]`` each.
        heads: sizes of the heads.
        layer: index of the layer.
        norm_weights: of the RMS norms of queries and keys; None for no norm.
        eps: of those norms.
        scale: usually ``D ** -0.5``.
        config: tile config.
        partial: float32 scratch of at least ``partial_size`` numbers.
        semaphores: int32 zeros, one for each head and sequence; zeros again afterwards.
    """
    q_norm_weight, k_norm_weight = norm_weights or (qkv, qkv)
    overlapping, dims = overlap(out), mma_padded(heads.head_dim)
    prefetches = overlapping["DEPENDENT"] and dims * qkv.element_size() >= LINE.value
    launch(
        _extend_attention, (heads.num_heads, sequences.count, config.splits),
        out, qkv, *sequences.arguments, *sequences.metadata[5:].unbind(), *cos_sin, q_norm_weight, k_norm_weight,
        partial, semaphores, eps, scale, layer,
        HEADS=heads.num_heads, KV_HEADS=heads.num_kv_heads, D=heads.head_dim, D_BLOCK=dims,
        HALF_BLOCK=mma_padded(heads.head_dim // 2), ROWS=padded_rows(len(qkv)), BLOCK=config.positions,
        STAGES=config.stages, SPLITS=config.splits, SHARED=sequences.shared, NORM=norm_weights is not None,
        PRECISION="ieee" if qkv.element_size() == 4 else "tf32", PREFETCH=_PREFETCHED if prefetches else 0,
        num_warps=config.warps, **overlapping,
    )  # fmt: skip
