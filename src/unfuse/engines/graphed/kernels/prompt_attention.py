"""Attention of prompts' positions, each prompt's to themselves and to what is cached before them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from unfuse.engines.graphed.kernels.decode_attention import Heads
from unfuse.engines.graphed.kernels.launch import LINE, UNIT, ask_for, launch, overlap, wide_enough

if TYPE_CHECKING:
    import torch


_AHEAD: Final = 128
"""Cached positions that each program asks for while the kernels ahead are still at work; a power of two."""


@dataclass(frozen=True, slots=True)
class Sequences:
    """Whose rows are multiplied together, on the device: one after the other, each after what is cached of it."""

    anchor: torch.Tensor
    """As in ``decode_attention``."""
    numbers: torch.Tensor
    """int64 ``[8, S]``, S a power of two: where the cache is (as in ``decode_attention``), its capacity, how much is
    cached, how many rows there are, and the first of them; then of what comes before the cache and lies elsewhere:
    where, the capacity there, and how much. Those without rows come last and begin where rows end."""
    shared: bool = False
    """Whether anything lies elsewhere."""

    @property
    def count(self) -> int:
        """S."""
        return self.numbers.shape[1]

    @property
    def arguments(self) -> tuple[torch.Tensor, ...]:
        """As kernels take them."""
        return self.anchor, *self.numbers[:5].unbind()


@triton.jit
def _place(
    qkv, anchor, cache_at, capacity, start, count, first, cosines, sines, q_gain, k_gain, eps, layer,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, HALF_BLOCK: tl.constexpr, TOGETHER: tl.constexpr,
    SEQUENCES: tl.constexpr, NORM: tl.constexpr, OVERLAP: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    head = (tl.program_id(1) * TOGETHER + tl.arange(0, TOGETHER))[:, None]
    # It is short: attention may ask for what is cached while the product ahead is still at work.
    if OVERLAP:
        gdc_launch_dependents()
    if DEPENDENT:
        gdc_wait()
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
        turned_low, turned_high = low.to(tl.float32), high.to(tl.float32)
        if NORM:
            rms = tl.rsqrt(
                (tl.sum(turned_low * turned_low, axis=1) + tl.sum(turned_high * turned_high, axis=1)) / D + eps
            )
            is_query = head < HEADS
            turned_low = (turned_low * rms[:, None]).to(dtype).to(tl.float32)
            turned_high = (turned_high * rms[:, None]).to(dtype).to(tl.float32)
            for_q = tl.load(q_gain + at, mask=inside, other=0.0).to(tl.float32)[None, :]
            for_k = tl.load(k_gain + at, mask=inside, other=0.0).to(tl.float32)[None, :]
            turned_low *= tl.where(is_query, for_q, for_k)
            for_q = tl.load(q_gain + half + at, mask=inside, other=0.0).to(tl.float32)[None, :]
            for_k = tl.load(k_gain + half + at, mask=inside, other=0.0).to(tl.float32)[None, :]
            turned_high *= tl.where(is_query, for_q, for_k)
        cosine = tl.load(cosines + row * half + at, mask=inside, other=0.0).to(tl.float32)[None, :]
        sine = tl.load(sines + row * half + at, mask=inside, other=0.0).to(tl.float32)[None, :]
        # Values are neither normed nor turned.
        turns = head < HEADS + KV_HEADS
        new_low = tl.where(turns, (turned_low * cosine - turned_high * sine).to(dtype), low)
        new_high = tl.where(turns, (turned_high * cosine + turned_low * sine).to(dtype), high)
        queries = present & (head < HEADS)
        tl.store(mine, new_low, mask=queries)
        tl.store(mine + half, new_high, mask=queries)
        # Keys and values of a layer follow one another in the cache, as they do in a row.
        kept = (layer * (2 * KV_HEADS) + head - HEADS).to(tl.int64) * tl.load(capacity + which)
        kept += tl.load(start + which) + own
        target = anchor + tl.load(cache_at + which) * UNIT + kept * D + at[None, :]
        tl.store(target, new_low, mask=present & (head >= HEADS))
        tl.store(target + half, new_high, mask=present & (head >= HEADS))


def place_keys(
    qkv: torch.Tensor,
    sequences: Sequences,
    angles: tuple[torch.Tensor, torch.Tensor],
    heads: Heads,
    layer: int,
    *,
    gains: tuple[torch.Tensor, torch.Tensor] | None,
    eps: float,
) -> None:
    """Norms and turns queries where they are, and keys and values into the sequence's cache.

    Args:
        qkv: ``[R, (heads + 2 kv_heads) * D]``.
        sequences: whose the rows are.
        angles: cosine and sine, ``[R, D / 2]`` each.
        heads: their numbers and size.
        layer: which layer of the cache.
        gains: of RMS norms of queries and keys, or None.
        eps: of those norms.
    """
    q_gain, k_gain = gains or (qkv, qkv)
    count = heads.heads + 2 * heads.kv_heads
    together = min(32, triton.next_power_of_2(count))
    launch(
        _place, (len(qkv), triton.cdiv(count, together)), qkv, *sequences.arguments, *angles, q_gain, k_gain,
        eps, layer,
        HEADS=heads.heads, KV_HEADS=heads.kv_heads, D=heads.size,
        HALF_BLOCK=triton.next_power_of_2(heads.size // 2), TOGETHER=together,
        SEQUENCES=sequences.count, NORM=gains is not None, num_warps=4, **overlap(qkv),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class PromptShape:
    """How attention of a prompt is cut."""

    rows: int
    """Queries a program."""
    positions: int
    """Positions a step."""
    warps: int
    stages: int


def _shape(rows: int, bytes_a_number: int) -> PromptShape:
    if rows > 64 and bytes_a_number == 2:
        return PromptShape(128, 64, 8, 3)
    if rows <= 32 and bytes_a_number == 2:
        return PromptShape(16 if rows <= 16 else 32, 64, 8, 2)
    return PromptShape(16 if rows <= 16 else 32 if rows <= 32 else 64, 64, 4, 3)


@triton.jit
def _attend_rows(
    q, keys, values, place, end, row_place, factor, wide, across, best, weight, total,
    D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    present = place < end
    k_at = keys + place[None, :].to(tl.int64) * D + wide[:, None]
    k = tl.load(k_at, mask=present[None, :] & across[:, None], other=0.0)
    scores = tl.dot(q, k, input_precision=PRECISION) * factor
    scores = tl.where(place[None, :] <= row_place[:, None], scores, float("-inf"))
    higher = tl.maximum(best, tl.max(scores, axis=1))
    # A row may see none of these positions: it must not give inf - inf.
    safe = tl.where(higher == float("-inf"), 0.0, higher)
    old = tl.exp2(best - safe)
    p = tl.exp2(scores - safe[:, None])
    weight = weight * old + tl.sum(p, axis=1)
    v_at = values + place[:, None].to(tl.int64) * D + wide[None, :]
    v = tl.load(v_at, mask=present[:, None] & across[None, :], other=0.0)
    total = tl.dot(p.to(v.dtype), v, total * old[:, None], input_precision=PRECISION)
    return higher, weight, total


@triton.jit
def _prompt_attention(
    out, qkv, anchor, cache_at, capacity, start, count, first, shared_at, shared_capacity, shared_count,
    partial, arrived, scale, layer, rows,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, D_BLOCK: tl.constexpr,
    GROUP: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr, SPLITS: tl.constexpr,
    SEQUENCES: tl.constexpr, SHARED: tl.constexpr, PRECISION: tl.constexpr, AHEAD: tl.constexpr,
    OVERLAP: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    # The last rows have the most before them; they begin first.
    tile, head, split = tl.num_programs(1) - 1 - tl.program_id(1), tl.program_id(0), tl.program_id(2) % SPLITS
    sequence, skipped = 0, 0
    if SEQUENCES > 1:
        sequence = tl.program_id(2) // SPLITS
    wide = tl.arange(0, D_BLOCK)
    across = wide < D
    before = tl.load(start + sequence).to(tl.int32)
    own = tl.load(count + sequence).to(tl.int32)
    end = before + tl.minimum(own, (tile + 1) * ROWS)
    size = tl.load(capacity + sequence).to(tl.int64) * D
    cache = anchor + tl.load(cache_at + sequence) * UNIT
    keys = cache + (layer * (2 * KV_HEADS) + head // GROUP) * size
    values = keys + KV_HEADS * size
    share = tl.cdiv(tl.cdiv(end, SPLITS), BLOCK) * BLOCK
    if AHEAD > 0:
        a_line: tl.constexpr = LINE // (qkv.dtype.element_ty.primitive_bitwidth // 8)
        cached = split * share + tl.arange(0, AHEAD)
        # Beyond what is its own and cached, the last of it again.
        cached = tl.minimum(cached, tl.maximum(tl.minimum(split * share + share, before) - 1, 0))
        asked = cached[:, None].to(tl.int64) * D + tl.arange(0, D_BLOCK // a_line)[None, :] * a_line
        ask_for(keys + asked)
        ask_for(values + asked)
    if DEPENDENT:
        gdc_wait()
    if OVERLAP:
        gdc_launch_dependents()
    if SEQUENCES > 1:
        rows = own
        if tile * ROWS >= rows:
            return
        skipped = tl.load(first + sequence)
        qkv += skipped * ((HEADS + 2 * KV_HEADS) * D)
        out += skipped * (HEADS * D)
    dtype: tl.constexpr = qkv.dtype.element_ty
    row = tile * ROWS + tl.arange(0, ROWS)
    width: tl.constexpr = (HEADS + 2 * KV_HEADS) * D
    q = tl.load(
        qkv + row[:, None].to(tl.int64) * width + head * D + wide[None, :],
        mask=(row < rows)[:, None] & across[None, :], other=0.0,
    )  # fmt: skip
    positions = tl.arange(0, BLOCK)
    best = tl.full([ROWS], float("-inf"), tl.float32)
    weight = tl.zeros([ROWS], tl.float32)
    total = tl.zeros([ROWS, D_BLOCK], tl.float32)
    # Base 2, so that the exponential is one instruction.
    factor = scale * 1.4426950408889634
    if SHARED:
        # All of it is before every row.
        ahead = tl.load(shared_count + sequence).to(tl.int32)
        room = tl.load(shared_capacity + sequence).to(tl.int64) * D
        ahead_keys = anchor + tl.load(shared_at + sequence) * UNIT + (layer * (2 * KV_HEADS) + head // GROUP) * room
        theirs_share = tl.cdiv(tl.cdiv(ahead, SPLITS), BLOCK) * BLOCK
        begin = split * theirs_share
        for at in tl.range(begin, tl.minimum(ahead, begin + theirs_share), BLOCK, num_stages=STAGES):
            best, weight, total = _attend_rows(
                q, ahead_keys, ahead_keys + KV_HEADS * room, at + positions, ahead, row * 0 + ahead - 1,
                factor, wide, across, best, weight, total, D, PRECISION,
            )  # fmt: skip
    for at in tl.range(split * share, tl.minimum(end, split * share + share), BLOCK, num_stages=STAGES):
        best, weight, total = _attend_rows(
            q, keys, values, at + positions, end, row + before, factor, wide, across,
            best, weight, total, D, PRECISION,
        )  # fmt: skip
    last = True
    if SPLITS > 1:
        # Whoever arrives last puts the parts together, always in the same order.
        per_row: tl.constexpr = D_BLOCK + 4
        which = (sequence * tl.num_programs(1) + tl.program_id(1)) * HEADS + head
        inner = tl.arange(0, ROWS) * per_row
        mine = partial + (which * SPLITS + split) * (ROWS * per_row)
        tl.store(mine + inner + D_BLOCK, best)
        tl.store(mine + inner + D_BLOCK + 1, weight)
        tl.store(mine + inner[:, None] + wide[None, :], total)
        tl.debug_barrier()
        last = tl.atomic_add(arrived + which, 1, sem="acq_rel") == SPLITS - 1
    if last:
        if SPLITS > 1:
            tl.debug_barrier()
            tl.store(arrived + which, 0)
            best = tl.full([ROWS], float("-inf"), tl.float32)
            weight = tl.zeros([ROWS], tl.float32)
            total = tl.zeros([ROWS, D_BLOCK], tl.float32)
            for other in tl.static_range(SPLITS):
                theirs = partial + (which * SPLITS + other) * (ROWS * per_row)
                their_best = tl.load(theirs + inner + D_BLOCK, cache_modifier=".cg")
                higher = tl.maximum(best, their_best)
                safe = tl.where(higher == float("-inf"), 0.0, higher)
                old, fresh = tl.exp2(best - safe), tl.exp2(their_best - safe)
                weight = weight * old + fresh * tl.load(theirs + inner + D_BLOCK + 1, cache_modifier=".cg")
                part = tl.load(theirs + inner[:, None] + wide[None, :], cache_modifier=".cg")
                total = total * old[:, None] + part * fresh[:, None]
                best = higher
        target = out + row[:, None].to(tl.int64) * (HEADS * D) + head * D + wide[None, :]
        tl.store(target, (total / weight[:, None]).to(dtype), mask=(row < rows)[:, None] & across[None, :])


def partial_size(heads: Heads, rows: int, splits: int, sequences: int = 1) -> int:
    """float32 numbers of scratch."""
    tile = max(_shape(rows, size).rows for size in (2, 4))
    return sequences * heads.heads * triton.cdiv(rows, tile) * tile * splits * (wide_enough(heads.size) + 4)


def prompt_attention(
    out: torch.Tensor,
    qkv: torch.Tensor,
    sequences: Sequences,
    heads: Heads,
    layer: int,
    *,
    scale: float,
    splits: int,
    partial: torch.Tensor,
    arrived: torch.Tensor,
    shape: PromptShape | None = None,
) -> None:
    """Causal attention of the rows whose keys ``place_keys`` has put into the cache (after Dao, arXiv 2307.08691).

    Args:
        out: ``[R, heads * D]``; rows that are not there get numbers without a meaning.
        qkv: ``[R, (heads + 2 kv_heads) * D]``, queries turned.
        sequences: whose the rows are.
        heads: their numbers and size.
        layer: which layer of the cache.
        scale: usually ``D ** -0.5``.
        splits: programs that share one head's positions.
        partial: float32 scratch of at least ``partial_size`` numbers.
        arrived: int32 zeros, one a head, tile of rows and sequence; left as zeros.
        shape: how the work is cut; by default what was fast for so many rows.
    """
    rows = len(qkv)
    shape = shape or _shape(rows, qkv.element_size())
    overlapping = overlap(out)
    # Where many rows are multiplied, the product ahead leaves the memory no time.
    asks = overlapping["DEPENDENT"] and splits > 1 and not sequences.shared
    ahead = _AHEAD if asks and wide_enough(heads.size) * qkv.element_size() >= LINE.value else 0
    launch(
        _prompt_attention, (heads.heads, triton.cdiv(rows, shape.rows), splits * sequences.count),
        out, qkv, *sequences.arguments, *sequences.numbers[5:].unbind(), partial, arrived, scale, layer, rows,
        HEADS=heads.heads, KV_HEADS=heads.kv_heads, D=heads.size, D_BLOCK=wide_enough(heads.size), GROUP=heads.group,
        ROWS=shape.rows, BLOCK=shape.positions, STAGES=shape.stages, SPLITS=splits,
        SEQUENCES=sequences.count, SHARED=sequences.shared, PRECISION="ieee" if qkv.element_size() == 4 else "tf32",
        AHEAD=ahead, num_warps=shape.warps, **overlapping,
    )  # fmt: skip
