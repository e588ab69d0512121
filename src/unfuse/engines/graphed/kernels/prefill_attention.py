"""Attention of prompts' positions, each prompt's to themselves and to what is cached before them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from unfuse.engines.graphed.kernels.attention_common import Heads
from unfuse.engines.graphed.kernels.launch import UNIT, launch, overlap, wide_enough

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class PackedSequences:
    """Prompts whose rows are packed one after the other, as the kernels read them."""

    base_pointer: torch.Tensor
    """As in ``decode_attention``."""
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
        """As kernels take them."""
        return self.base_pointer, *self.metadata[:5].unbind()


@triton.jit
def _write_kv(
    qkv, base_pointer, cache_at, capacity, start, count, first, cosines, sines, q_norm_weight, k_norm_weight,
    eps, layer,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, HALF_BLOCK: tl.constexpr, TOGETHER: tl.constexpr,
    SEQUENCES: tl.constexpr, NORM: tl.constexpr, OVERLAP: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    head = (tl.program_id(1) * TOGETHER + tl.arange(0, TOGETHER))[:, None]
    if DEPENDENT:
        gdc_wait()
    if OVERLAP:
        gdc_launch_dependents()
    half: tl.constexpr = D // 2
    dtype: tl.constexpr = qkv.dtype.element_ty
    which, own = 0, row
    if SEQUENCES > 1:
        begins = tl.load(first + tl.arange(0, SEQUENCES))
        which = tl.sum((begins <= row).to(tl.int32), axis=0) - 1
        own = row - tl.load(first + which).to(tl.int32)
    if own < tl.load(count + which):
        at = tl.arange(0, HALF_BLOCK)
        inside = at < half
        present = (head < HEADS + 2 * KV_HEADS) & inside[None, :]
        mine = qkv + row.to(tl.int64) * ((HEADS + 2 * KV_HEADS) * D) + head * D + at[None, :]
        low = tl.load(mine, mask=present, other=0.0)
        high = tl.load(mine + half, mask=present, other=0.0)
        rotated_low, rotated_high = low.to(tl.float32), high.to(tl.float32)
        if NORM:
            rms = tl.rsqrt(
                (tl.sum(rotated_low * rotated_low, axis=1) + tl.sum(rotated_high * rotated_high, axis=1)) / D + eps
            )
            is_query = head < HEADS
            rotated_low = (rotated_low * rms[:, None]).to(dtype).to(tl.float32)
            rotated_high = (rotated_high * rms[:, None]).to(dtype).to(tl.float32)
            for_q = tl.load(q_norm_weight + at, mask=inside, other=0.0).to(tl.float32)[None, :]
            for_k = tl.load(k_norm_weight + at, mask=inside, other=0.0).to(tl.float32)[None, :]
            rotated_low *= tl.where(is_query, for_q, for_k)
            for_q = tl.load(q_norm_weight + half + at, mask=inside, other=0.0).to(tl.float32)[None, :]
            for_k = tl.load(k_norm_weight + half + at, mask=inside, other=0.0).to(tl.float32)[None, :]
            rotated_high *= tl.where(is_query, for_q, for_k)
        cosine = tl.load(cosines + row * half + at, mask=inside, other=0.0).to(tl.float32)[None, :]
        sine = tl.load(sines + row * half + at, mask=inside, other=0.0).to(tl.float32)[None, :]
        # Values are neither normed nor turned.
        turns = head < HEADS + KV_HEADS
        new_low = tl.where(turns, (rotated_low * cosine - rotated_high * sine).to(dtype), low)
        new_high = tl.where(turns, (rotated_high * cosine + rotated_low * sine).to(dtype), high)
        queries = present & (head < HEADS)
        tl.store(mine, new_low, mask=queries)
        tl.store(mine + half, new_high, mask=queries)
        # Keys and values of a layer follow one another in the cache, as they do in a row.
        kept = (layer * (2 * KV_HEADS) + head - HEADS).to(tl.int64) * tl.load(capacity + which)
        kept += tl.load(start + which) + own
        target = base_pointer + tl.load(cache_at + which) * UNIT + kept * D + at[None, :]
        tl.store(target, new_low, mask=present & (head >= HEADS))
        tl.store(target + half, new_high, mask=present & (head >= HEADS))


def write_kv(
    qkv: torch.Tensor,
    sequences: PackedSequences,
    angles: tuple[torch.Tensor, torch.Tensor],
    heads: Heads,
    layer: int,
    *,
    norm_weights: tuple[torch.Tensor, torch.Tensor] | None,
    eps: float,
) -> None:
    """Normalise and rotate the queries in place, and write keys and values into the KV caches.

    Args:
        qkv: ``[R, (heads + 2 kv_heads) * D]``.
        sequences: whose the rows are.
        angles: cosine and sine, ``[R, D / 2]`` each.
        heads: their numbers and size.
        layer: which layer of the cache.
        norm_weights: of RMS norms of queries and keys, or None.
        eps: of those norms.
    """
    q_norm_weight, k_norm_weight = norm_weights or (qkv, qkv)
    count = heads.num_heads + 2 * heads.num_kv_heads
    together = min(32, triton.next_power_of_2(count))
    launch(
        _write_kv, (len(qkv), triton.cdiv(count, together)),
        qkv, *sequences.arguments, *angles, q_norm_weight, k_norm_weight, eps, layer,
        HEADS=heads.num_heads, KV_HEADS=heads.num_kv_heads, D=heads.head_dim,
        HALF_BLOCK=triton.next_power_of_2(heads.head_dim // 2), TOGETHER=together,
        SEQUENCES=sequences.count, NORM=norm_weights is not None, num_warps=4, **overlap(qkv),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    """Tile config of prefill attention."""

    rows: int
    """Queries a program."""
    positions: int
    """Positions a step."""
    warps: int
    stages: int


def _shape(rows: int, bytes_a_number: int) -> PrefillConfig:
    if bytes_a_number == 4:
        # One core compiles it in 7 s, and 64 by 64 in 43: see ``extend_attention``.
        return PrefillConfig(32, 32, 8, 2)
    return PrefillConfig(128, 64, 8, 3) if rows > 64 else PrefillConfig(64, 64, 4, 3)


@triton.jit
def _attend_rows(
    q, keys, values, place, end, row_place, factor, best, weight, total,
    D: tl.constexpr, D_BLOCK: tl.constexpr, ALL_SEEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    wide = tl.arange(0, D_BLOCK)
    k_at = keys + place[None, :].to(tl.int64) * D + wide[:, None]
    v_at = values + place[:, None].to(tl.int64) * D + wide[None, :]
    if ALL_SEEN and D == D_BLOCK:
        k, v = tl.load(k_at), tl.load(v_at)
    else:
        present, across = place < end, wide < D
        k = tl.load(k_at, mask=present[None, :] & across[:, None], other=0.0)
        v = tl.load(v_at, mask=present[:, None] & across[None, :], other=0.0)
    scores = tl.dot(q, k, input_precision=PRECISION)
    if not ALL_SEEN:
        scores = tl.where(place[None, :] <= row_place[:, None], scores, float("-inf"))
    higher = tl.maximum(best, tl.max(scores, axis=1) * factor)
    # A row may see none of these positions: it must not give inf - inf.
    safe = higher if ALL_SEEN else tl.where(higher == float("-inf"), 0.0, higher)
    old = tl.exp2(best - safe)
    p = tl.exp2(scores * factor - safe[:, None])
    weight = weight * old + tl.sum(p, axis=1)
    total = tl.dot(p.to(v.dtype), v, total * old[:, None], input_precision=PRECISION)
    return higher, weight, total


@triton.jit
def _attend_to(
    q, keys, values, end, row_place, seen_by_all, factor, best, weight, total,
    D: tl.constexpr, D_BLOCK: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All positions of one cache; blocks of such as all rows see need no mask."""
    positions = tl.arange(0, BLOCK)
    whole = seen_by_all // BLOCK * BLOCK
    for at in tl.range(0, whole, BLOCK, num_stages=STAGES):
        best, weight, total = _attend_rows(
            q, keys, values, at + positions, end, row_place, factor, best, weight, total, D, D_BLOCK, True, PRECISION
        )
    for at in tl.range(whole, end, BLOCK, num_stages=STAGES):
        best, weight, total = _attend_rows(
            q, keys, values, at + positions, end, row_place, factor, best, weight, total, D, D_BLOCK, False, PRECISION
        )
    return best, weight, total


@triton.jit
def _prefill_attention(
    out, qkv, base_pointer, cache_at, capacity, start, count, first, shared_at, shared_capacity, shared_count,
    scale, layer, rows,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, D_BLOCK: tl.constexpr,
    GROUP: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
    SEQUENCES: tl.constexpr, SHARED: tl.constexpr, PRECISION: tl.constexpr, OVERLAP: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    # The last rows have the most before them; they begin first.
    tile, head, sequence = tl.num_programs(1) - 1 - tl.program_id(1), tl.program_id(0), tl.program_id(2)
    if DEPENDENT:
        gdc_wait()
    if OVERLAP:
        gdc_launch_dependents()
    if SEQUENCES > 1:
        rows = tl.load(count + sequence).to(tl.int32)
        if tile * ROWS >= rows:
            return
        skipped = tl.load(first + sequence)
        qkv += skipped * ((HEADS + 2 * KV_HEADS) * D)
        out += skipped * (HEADS * D)
    dtype: tl.constexpr = qkv.dtype.element_ty
    wide = tl.arange(0, D_BLOCK)
    across = wide < D
    row = tile * ROWS + tl.arange(0, ROWS)
    before = tl.load(start + sequence).to(tl.int32)
    end = before + tl.minimum(tl.load(count + sequence).to(tl.int32), (tile + 1) * ROWS)
    width: tl.constexpr = (HEADS + 2 * KV_HEADS) * D
    q = tl.load(
        qkv + row[:, None].to(tl.int64) * width + head * D + wide[None, :],
        mask=(row < rows)[:, None] & across[None, :], other=0.0,
    )  # fmt: skip
    size = tl.load(capacity + sequence).to(tl.int64) * D
    cache = base_pointer + tl.load(cache_at + sequence) * UNIT
    keys = cache + (layer * (2 * KV_HEADS) + head // GROUP) * size
    values = keys + KV_HEADS * size
    best = tl.full([ROWS], float("-inf"), tl.float32)
    weight = tl.zeros([ROWS], tl.float32)
    total = tl.zeros([ROWS, D_BLOCK], tl.float32)
    # Base 2, so that the exponential is one instruction.
    factor = scale * 1.4426950408889634
    if SHARED:
        ahead = tl.load(shared_count + sequence).to(tl.int32)
        room = tl.load(shared_capacity + sequence).to(tl.int64) * D
        ahead_keys = (
            base_pointer + tl.load(shared_at + sequence) * UNIT + (layer * (2 * KV_HEADS) + head // GROUP) * room
        )
        best, weight, total = _attend_to(
            q, ahead_keys, ahead_keys + KV_HEADS * room, ahead, row * 0 + ahead - 1, ahead, factor,
            best, weight, total, D, D_BLOCK, BLOCK, STAGES, PRECISION,
        )  # fmt: skip
    best, weight, total = _attend_to(
        q, keys, values, end, row + before, tl.minimum(before + tile * ROWS + 1, end), factor,
        best, weight, total, D, D_BLOCK, BLOCK, STAGES, PRECISION,
    )  # fmt: skip
    target = out + row[:, None].to(tl.int64) * (HEADS * D) + head * D + wide[None, :]
    tl.store(target, (total / weight[:, None]).to(dtype), mask=(row < rows)[:, None] & across[None, :])


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
    """Causal attention of the rows whose keys ``write_kv`` has put into the cache (after Dao, arXiv 2307.08691).

    Args:
        out: ``[R, heads * D]``; rows that are not there get numbers without a meaning.
        qkv: ``[R, (heads + 2 kv_heads) * D]``, queries turned.
        sequences: whose the rows are.
        heads: their numbers and size.
        layer: which layer of the cache.
        scale: usually ``D ** -0.5``.
        config: how the work is cut; by default what was fast for so many rows.
    """
    rows = len(qkv)
    config = config or _shape(rows, qkv.element_size())
    launch(
        _prefill_attention, (heads.num_heads, triton.cdiv(rows, config.rows), sequences.count),
        out, qkv, *sequences.arguments, *sequences.metadata[5:].unbind(), scale, layer, rows,
        HEADS=heads.num_heads, KV_HEADS=heads.num_kv_heads, D=heads.head_dim, D_BLOCK=wide_enough(heads.head_dim),
        GROUP=heads.group, ROWS=config.rows, BLOCK=config.positions, STAGES=config.stages,
        SEQUENCES=sequences.count, SHARED=sequences.shared, PRECISION="ieee" if qkv.element_size() == 4 else "tf32",
        num_warps=config.warps, **overlap(out),
    )  # fmt: skip
