"""Prefill attention of packed prompts: causal within a prompt, and to its cached positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from unfuse.engines.graphed.kernels.attention_common import Heads
from unfuse.engines.graphed.kernels.launch import UNIT, launch, mma_padded, overlap

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class PackedSequences:
    """Prompts with their rows packed one after the other, as the kernels read them."""

    base_pointer: torch.Tensor
    """See ``decode_attention``."""
    metadata: torch.Tensor
    """int64 ``[8, S]``, S a power of two. Rows: offset of the KV cache (see ``decode_attention``), its capacity, number
    of cached positions, number of new rows, offset of the new rows in the packed batch; then of a prefix in another
    KV cache: offset, capacity, length. Unused columns come last, with no rows and the end of the batch as offset."""
    shared: bool = False
    """Whether any prompt has a prefix in another KV cache."""

    @property
    def count(self) -> int:
        """S."""
        return self.metadata.shape[1]

    @property
    def arguments(self) -> tuple[torch.Tensor, ...]:
        """Arguments of the kernels."""
        return self.base_pointer, *self.metadata[:5].unbind()


@triton.jit
def _write_kv(
    qkv, base_pointer, cache_at, capacity, start, count, first, cosines, sines, q_norm_weight, k_norm_weight,
    eps, layer,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, HALF_BLOCK: tl.constexpr, TOGETHER: tl.constexpr,
    SEQUENCES: tl.constexpr, NORM: tl.constexpr, OVERLAP: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    heads = (tl.program_id(1) * TOGETHER + tl.arange(0, TOGETHER))[:, None]
    if DEPENDENT:
        gdc_wait()
    if OVERLAP:
        gdc_launch_dependents()
    half: tl.constexpr = D // 2
    dtype: tl.constexpr = qkv.dtype.element_ty
    sequence, index = 0, row
    if SEQUENCES > 1:
        first_rows = tl.load(first + tl.arange(0, SEQUENCES))
        sequence = tl.sum((first_rows <= row).to(tl.int32), axis=0) - 1
        index = row - tl.load(first + sequence).to(tl.int32)
    if index < tl.load(count + sequence):
        half_dims = tl.arange(0, HALF_BLOCK)
        half_mask = half_dims < half
        mask = (heads < HEADS + 2 * KV_HEADS) & half_mask[None, :]
        qkv_row = qkv + row.to(tl.int64) * ((HEADS + 2 * KV_HEADS) * D) + heads * D + half_dims[None, :]
        low = tl.load(qkv_row, mask=mask, other=0.0)
        high = tl.load(qkv_row + half, mask=mask, other=0.0)
        rotated_low, rotated_high = low.to(tl.float32), high.to(tl.float32)
        if NORM:
            rms = tl.rsqrt(
                (tl.sum(rotated_low * rotated_low, axis=1) + tl.sum(rotated_high * rotated_high, axis=1)) / D + eps
            )
            is_query = heads < HEADS
            rotated_low = (rotated_low * rms[:, None]).to(dtype).to(tl.float32)
            rotated_high = (rotated_high * rms[:, None]).to(dtype).to(tl.float32)
            for_q = tl.load(q_norm_weight + half_dims, mask=half_mask, other=0.0).to(tl.float32)[None, :]
            for_k = tl.load(k_norm_weight + half_dims, mask=half_mask, other=0.0).to(tl.float32)[None, :]
            rotated_low *= tl.where(is_query, for_q, for_k)
            for_q = tl.load(q_norm_weight + half + half_dims, mask=half_mask, other=0.0).to(tl.float32)[None, :]
            for_k = tl.load(k_norm_weight + half + half_dims, mask=half_mask, other=0.0).to(tl.float32)[None, :]
            rotated_high *= tl.where(is_query, for_q, for_k)
        cosine = tl.load(cosines + row * half + half_dims, mask=half_mask, other=0.0).to(tl.float32)[None, :]
        sine = tl.load(sines + row * half + half_dims, mask=half_mask, other=0.0).to(tl.float32)[None, :]
        # Values are neither normed nor rotated.
        rotates = heads < HEADS + KV_HEADS
        new_low = tl.where(rotates, (rotated_low * cosine - rotated_high * sine).to(dtype), low)
        new_high = tl.where(rotates, (rotated_high * cosine + rotated_low * sine).to(dtype), high)
        queries = mask & (heads < HEADS)
        tl.store(qkv_row, new_low, mask=queries)
        tl.store(qkv_row + half, new_high, mask=queries)
        # Keys and values of a layer are adjacent in the cache, as they are in a row.
        cache_offset = (layer * (2 * KV_HEADS) + heads - HEADS).to(tl.int64) * tl.load(capacity + sequence)
        cache_offset += tl.load(start + sequence) + index
        target = base_pointer + tl.load(cache_at + sequence) * UNIT + cache_offset * D + half_dims[None, :]
        tl.store(target, new_low, mask=mask & (heads >= HEADS))
        tl.store(target + half, new_high, mask=mask & (heads >= HEADS))


def write_kv(
    qkv: torch.Tensor,
    sequences: PackedSequences,
    cos_sin: tuple[torch.Tensor, torch.Tensor],
    heads: Heads,
    layer: int,
    *,
    norm_weights: tuple[torch.Tensor, torch.Tensor] | None,
    eps: float,
) -> None:
    """Normalise and rotate queries and keys; write the queries in place, keys and values into the KV caches.

    Args:
        qkv: ``[R, (heads + 2 kv_heads) * D]``.
        sequences: prompts of the rows.
        cos_sin: cosine and sine of the rotary embedding, ``[R, D / 2]`` each.
        heads: sizes of the heads.
        layer: index of the layer.
        norm_weights: of the RMS norms of queries and keys; None for no norm.
        eps: of those norms.
    """
    q_norm_weight, k_norm_weight = norm_weights or (qkv, qkv)
    count = heads.num_heads + 2 * heads.num_kv_heads
    together = min(32, triton.next_power_of_2(count))
    launch(
        _write_kv, (len(qkv), triton.cdiv(count, together)),
        qkv, *sequences.arguments, *cos_sin, q_norm_weight, k_norm_weight, eps, layer,
        HEADS=heads.num_heads, KV_HEADS=heads.num_kv_heads, D=heads.head_dim,
        HALF_BLOCK=triton.next_power_of_2(heads.head_dim // 2), TOGETHER=together,
        SEQUENCES=sequences.count, NORM=norm_weights is not None, num_warps=4, **overlap(qkv),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    """Tile config of prefill attention."""

    rows: int
    """Queries per program."""
    positions: int
    """Positions per iteration."""
    warps: int
    stages: int


def _default_config(rows: int, bytes_a_number: int) -> PrefillConfig:
    if bytes_a_number == 4:
        # Compiles in 7 s on one core, and 64 by 64 in 43 s: see ``extend_attention.FLOAT32_CONFIG``.
        return PrefillConfig(32, 32, 8, 2)
    return PrefillConfig(128, 64, 8, 3) if rows > 64 else PrefillConfig(64, 64, 4, 3)


@triton.jit
def _attend_rows(
    q, keys, values, position, end, row_position, factor, row_max, row_sum, acc,
    D: tl.constexpr, D_BLOCK: tl.constexpr, UNMASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    dims = tl.arange(0, D_BLOCK)
    k_at = keys + position[None, :].to(tl.int64) * D + dims[:, None]
    v_at = values + position[:, None].to(tl.int64) * D + dims[None, :]
    if UNMASKED and D == D_BLOCK:
        k, v = tl.load(k_at), tl.load(v_at)
    else:
        present, dim_mask = position < end, dims < D
        k = tl.load(k_at, mask=present[None, :] & dim_mask[:, None], other=0.0)
        v = tl.load(v_at, mask=present[:, None] & dim_mask[None, :], other=0.0)
    scores = tl.dot(q, k, input_precision=PRECISION)
    if not UNMASKED:
        scores = tl.where(position[None, :] <= row_position[:, None], scores, float("-inf"))
    new_max = tl.maximum(row_max, tl.max(scores, axis=1) * factor)
    # A row may see none of these positions: avoid inf - inf.
    safe = new_max if UNMASKED else tl.where(new_max == float("-inf"), 0.0, new_max)
    rescale = tl.exp2(row_max - safe)
    p = tl.exp2(scores * factor - safe[:, None])
    row_sum = row_sum * rescale + tl.sum(p, axis=1)
    acc = tl.dot(p.to(v.dtype), v, acc * rescale[:, None], input_precision=PRECISION)
    return new_max, row_sum, acc


@triton.jit
def _attend_cache(
    q, keys, values, end, row_position, unmasked_end, factor, row_max, row_sum, acc,
    D: tl.constexpr, D_BLOCK: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend to all positions of one cache. Blocks that all rows see need no mask."""
    positions = tl.arange(0, BLOCK)
    unmasked_blocks = unmasked_end // BLOCK * BLOCK
    for at in tl.range(0, unmasked_blocks, BLOCK, num_stages=STAGES):
        row_max, row_sum, acc = _attend_rows(
            q,
            keys,
            values,
            at + positions,
            end,
            row_position,
            factor,
            row_max,
            row_sum,
            acc,
            D,
            D_BLOCK,
            True,
            PRECISION,
        )
    for at in tl.range(unmasked_blocks, end, BLOCK, num_stages=STAGES):
        row_max, row_sum, acc = _attend_rows(
            q,
            keys,
            values,
            at + positions,
            end,
            row_position,
            factor,
            row_max,
            row_sum,
            acc,
            D,
            D_BLOCK,
            False,
            PRECISION,
        )
    return row_max, row_sum, acc


@triton.jit
def _prefill_attention(
    out, qkv, base_pointer, cache_at, capacity, start, count, first, shared_at, shared_capacity, shared_count,
    scale, layer, rows,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, D_BLOCK: tl.constexpr,
    GROUP: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
    SEQUENCES: tl.constexpr, SHARED: tl.constexpr, PRECISION: tl.constexpr, OVERLAP: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    # The last rows attend to the most positions, so they start first.
    tile, head, sequence = tl.num_programs(1) - 1 - tl.program_id(1), tl.program_id(0), tl.program_id(2)
    if DEPENDENT:
        gdc_wait()
    if OVERLAP:
        gdc_launch_dependents()
    if SEQUENCES > 1:
        rows = tl.load(count + sequence).to(tl.int32)
        if tile * ROWS >= rows:
            return
        first_row = tl.load(first + sequence)
        qkv += first_row * ((HEADS + 2 * KV_HEADS) * D)
        out += first_row * (HEADS * D)
    dtype: tl.constexpr = qkv.dtype.element_ty
    dims = tl.arange(0, D_BLOCK)
    dim_mask = dims < D
    row = tile * ROWS + tl.arange(0, ROWS)
    num_cached = tl.load(start + sequence).to(tl.int32)
    end = num_cached + tl.minimum(tl.load(count + sequence).to(tl.int32), (tile + 1) * ROWS)
    width: tl.constexpr = (HEADS + 2 * KV_HEADS) * D
    q = tl.load(
        qkv + row[:, None].to(tl.int64) * width + head * D + dims[None, :],
        mask=(row < rows)[:, None] & dim_mask[None, :], other=0.0,
    )  # fmt: skip
    kv_stride = tl.load(capacity + sequence).to(tl.int64) * D
    cache = base_pointer + tl.load(cache_at + sequence) * UNIT
    keys = cache + (layer * (2 * KV_HEADS) + head // GROUP) * kv_stride
    values = keys + KV_HEADS * kv_stride
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
            + (layer * (2 * KV_HEADS) + head // GROUP) * prefix_stride
        )
        row_max, row_sum, acc = _attend_cache(
            q, prefix_keys, prefix_keys + KV_HEADS * prefix_stride, prefix_length, row * 0 + prefix_length - 1,
            prefix_length, factor, row_max, row_sum, acc, D, D_BLOCK, BLOCK, STAGES, PRECISION,
        )  # fmt: skip
    row_max, row_sum, acc = _attend_cache(
        q, keys, values, end, row + num_cached, tl.minimum(num_cached + tile * ROWS + 1, end), factor,
        row_max, row_sum, acc, D, D_BLOCK, BLOCK, STAGES, PRECISION,
    )  # fmt: skip
    target = out + row[:, None].to(tl.int64) * (HEADS * D) + head * D + dims[None, :]
    tl.store(target, (acc / row_sum[:, None]).to(dtype), mask=(row < rows)[:, None] & dim_mask[None, :])


def prefill_attention(
    out: torch.Tensor,
    qkv: torch.Tensor,
    sequences: PackedSequences,
    heads: Heads,
    layer: int,
    *,
    scale: float,
    config: PrefillConfig | None = None,
) -> None:
    """Compute causal attention over cached keys and values (FlashAttention-2: Dao, arXiv 2307.08691).

    Args:
        out: ``[R, heads * D]``; padding rows are undefined.
        qkv: ``[R, (heads + 2 kv_heads) * D]``, after ``write_kv``.
        sequences: prompts of the rows.
        heads: sizes of the heads.
        layer: index of the layer.
        scale: usually ``D ** -0.5``.
        config: tile config; by default one that is fast for so many rows.
    """
    rows = len(qkv)
    config = config or _default_config(rows, qkv.element_size())
    launch(
        _prefill_attention, (heads.num_heads, triton.cdiv(rows, config.rows), sequences.count),
        out, qkv, *sequences.arguments, *sequences.metadata[5:].unbind(), scale, layer, rows,
        HEADS=heads.num_heads, KV_HEADS=heads.num_kv_heads, D=heads.head_dim, D_BLOCK=mma_padded(heads.head_dim),
        GROUP=heads.group, ROWS=config.rows, BLOCK=config.positions, STAGES=config.stages,
        SEQUENCES=sequences.count, SHARED=sequences.shared, PRECISION="ieee" if qkv.element_size() == 4 else "tf32",
        num_warps=config.warps, **overlap(out),
    )  # fmt: skip
