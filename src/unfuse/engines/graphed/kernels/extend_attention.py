"""Attention of the few rows that end a prompt whose beginning is cached, and their keys and values into the cache.

Few rows give few programs, so each head's cached positions are split among several; one of them takes the new rows,
whose keys it norms and turns itself: nobody has to wait for another kernel that does so first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from unfuse.engines.graphed.kernels.attention_common import Heads
from unfuse.engines.graphed.kernels.launch import LINE, UNIT, launch, overlap, prefetch_l2, wide_enough
from unfuse.engines.graphed.kernels.skinny_gemm import padded_rows

if TYPE_CHECKING:
    import torch

    from unfuse.engines.graphed.kernels.prefill_attention import PackedSequences

_AHEAD: Final = 128
"""Cached positions that each program asks for while the kernels ahead are still at work; a power of two."""


@dataclass(frozen=True, slots=True)
class ExtendConfig:
    """How attention of few rows is cut."""

    splits: int
    """Programs that share one head's cached positions."""
    positions: int
    """Cached positions a step."""
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
IN_FLOAT32: Final = ExtendConfig(4, 32, 8, 2)
"""There a product is multiplied number by number, each written out by the compiler: small shapes are ready soon."""


@triton.jit
def _rotated(at, norm_weight, cosine, sine, present, inside, eps, D: tl.constexpr, NORM: tl.constexpr):
    """Both halves of rows of heads, normed and turned, in their own dtype."""
    half: tl.constexpr = D // 2
    dtype: tl.constexpr = at.dtype.element_ty
    wide = tl.arange(0, cosine.shape[1])
    low = tl.load(at + wide[None, :], mask=present, other=0.0).to(tl.float32)
    high = tl.load(at + half + wide[None, :], mask=present, other=0.0).to(tl.float32)
    if NORM:
        rms = tl.rsqrt((tl.sum(low * low, axis=1) + tl.sum(high * high, axis=1)) / D + eps)
        low = (low * rms[:, None]).to(dtype).to(tl.float32)
        high = (high * rms[:, None]).to(dtype).to(tl.float32)
        low *= tl.load(norm_weight + wide, mask=inside, other=0.0).to(tl.float32)[None, :]
        high *= tl.load(norm_weight + half + wide, mask=inside, other=0.0).to(tl.float32)[None, :]
    return (low * cosine - high * sine).to(dtype), (high * cosine + low * sine).to(dtype)


@triton.jit
def _seen(scores, v, best, weight, total, PRECISION: tl.constexpr):
    """What was attended to, and these positions as well."""
    higher = tl.maximum(best, tl.max(scores, axis=1))
    # A row may see none of these positions: it must not give inf - inf.
    safe = tl.where(higher == float("-inf"), 0.0, higher)
    old = tl.exp2(best - safe)
    p = tl.exp2(scores - safe[:, None])
    weight = weight * old + tl.sum(p, axis=1)
    total = tl.dot(p.to(v.dtype), v, total * old[:, None], input_precision=PRECISION)
    return higher, weight, total


@triton.jit
def _cached(
    low, high, keys, values, place, end, factor, best, weight, total, D: tl.constexpr, D_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Positions of a cache, which all rows see."""
    half: tl.constexpr = D // 2
    there = place < end
    across, wide = tl.arange(0, low.shape[1]), tl.arange(0, D_BLOCK)
    k_at = keys + place[None, :].to(tl.int64) * D + across[:, None]
    present = there[None, :] & (across < half)[:, None]
    scores = tl.dot(low, tl.load(k_at, mask=present, other=0.0), input_precision=PRECISION)
    scores = tl.dot(high, tl.load(k_at + half, mask=present, other=0.0), scores, input_precision=PRECISION)
    scores = tl.where(there[None, :], scores * factor, float("-inf"))
    v_at = values + place[:, None].to(tl.int64) * D + wide[None, :]
    v = tl.load(v_at, mask=there[:, None] & (wide < D)[None, :], other=0.0)
    return _seen(scores, v, best, weight, total, PRECISION)


@triton.jit
def _extend_attention(
    out, qkv, base_pointer, cache_at, capacity, start, count, first, shared_at, shared_capacity, shared_count,
    cosines, sines, q_norm_weight, k_norm_weight, partial, semaphores, eps, scale, layer,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, D_BLOCK: tl.constexpr, HALF_BLOCK: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr, SPLITS: tl.constexpr, SHARED: tl.constexpr,
    NORM: tl.constexpr, PRECISION: tl.constexpr, AHEAD: tl.constexpr, OVERLAP: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    head, sequence, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    group: tl.constexpr = HEADS // KV_HEADS
    half: tl.constexpr = D // 2
    width: tl.constexpr = (HEADS + 2 * KV_HEADS) * D
    dtype: tl.constexpr = qkv.dtype.element_ty
    own = tl.load(count + sequence).to(tl.int32)
    before = tl.load(start + sequence).to(tl.int32)
    size = tl.load(capacity + sequence).to(tl.int64) * D
    keys = base_pointer + tl.load(cache_at + sequence) * UNIT + (layer * (2 * KV_HEADS) + head // group) * size
    values = keys + KV_HEADS * size
    share = tl.cdiv(tl.cdiv(before, SPLITS), BLOCK) * BLOCK
    begin = split * share
    end = tl.minimum(before, begin + share)
    wide, across = tl.arange(0, D_BLOCK), tl.arange(0, HALF_BLOCK)
    if AHEAD > 0:
        a_line: tl.constexpr = LINE // (dtype.primitive_bitwidth // 8)
        # Beyond what is its own, the last of it again.
        asked = tl.minimum(begin + tl.arange(0, AHEAD), tl.maximum(end - 1, 0))
        asked = asked[:, None].to(tl.int64) * D + tl.arange(0, D_BLOCK // a_line)[None, :] * a_line
        prefetch_l2(keys + asked)
        prefetch_l2(values + asked)
    if DEPENDENT:
        gdc_wait()
    if OVERLAP:
        gdc_launch_dependents()
    if own == 0:
        return
    skipped = tl.load(first + sequence)
    row = tl.arange(0, ROWS)
    present, inside = row < own, across < half
    both = present[:, None] & inside[None, :]
    mine = qkv + (skipped + row)[:, None] * width
    angle = (skipped + row)[:, None] * half + across[None, :]
    cosine = tl.load(cosines + angle, mask=both, other=0.0).to(tl.float32)
    sine = tl.load(sines + angle, mask=both, other=0.0).to(tl.float32)
    low, high = _rotated(mine + head * D, q_norm_weight, cosine, sine, both, inside, eps, D, NORM)
    best = tl.full([ROWS], float("-inf"), tl.float32)
    weight = tl.zeros([ROWS], tl.float32)
    total = tl.zeros([ROWS, D_BLOCK], tl.float32)
    # Base 2, so that the exponential is one instruction.
    factor = scale * 1.4426950408889634
    if SHARED:
        there = tl.load(shared_count + sequence).to(tl.int32)
        room = tl.load(shared_capacity + sequence).to(tl.int64) * D
        its_keys = base_pointer + tl.load(shared_at + sequence) * UNIT + (layer * (2 * KV_HEADS) + head // group) * room
        its_share = tl.cdiv(tl.cdiv(there, SPLITS), BLOCK) * BLOCK
        its_begin = split * its_share
        its_end = tl.minimum(there, its_begin + its_share)
        for at in tl.range(its_begin, its_end, BLOCK, num_stages=STAGES):
            best, weight, total = _cached(
                low, high, its_keys, its_keys + KV_HEADS * room, at + tl.arange(0, BLOCK), its_end, factor,
                best, weight, total, D, D_BLOCK, PRECISION,
            )  # fmt: skip
    for at in tl.range(begin, end, BLOCK, num_stages=STAGES):
        best, weight, total = _cached(
            low, high, keys, values, at + tl.arange(0, BLOCK), end, factor,
            best, weight, total, D, D_BLOCK, PRECISION,
        )  # fmt: skip
    if split == SPLITS - 1:
        new = mine + (HEADS + head // group) * D
        k_low, k_high = _rotated(new, k_norm_weight, cosine, sine, both, inside, eps, D, NORM)
        v_at = new + KV_HEADS * D + wide[None, :]
        v = tl.load(v_at, mask=present[:, None] & (wide < D)[None, :], other=0.0)
        if head % group == 0:
            kept = (before + row)[:, None].to(tl.int64) * D
            tl.store(keys + kept + across[None, :], k_low, mask=both)
            tl.store(keys + kept + half + across[None, :], k_high, mask=both)
            tl.store(values + kept + wide[None, :], v, mask=present[:, None] & (wide < D)[None, :])
        scores = tl.dot(low, tl.trans(k_low), input_precision=PRECISION)
        scores = tl.dot(high, tl.trans(k_high), scores, input_precision=PRECISION) * factor
        scores = tl.where((row[None, :] <= row[:, None]) & present[None, :], scores, float("-inf"))
        best, weight, total = _seen(scores, v, best, weight, total, PRECISION)
    last = True
    if SPLITS > 1:
        # Whoever arrives last puts the parts together, always in the same order.
        per_row: tl.constexpr = D_BLOCK + 4
        which = sequence * HEADS + head
        inner = row * per_row
        part = partial + (which * SPLITS + split) * (ROWS * per_row)
        tl.store(part + inner + D_BLOCK, best)
        tl.store(part + inner + D_BLOCK + 1, weight)
        tl.store(part + inner[:, None] + wide[None, :], total)
        tl.debug_barrier()
        last = tl.atomic_add(semaphores + which, 1, sem="acq_rel") == SPLITS - 1
    if last:
        if SPLITS > 1:
            tl.debug_barrier()
            tl.store(semaphores + which, 0)
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
                their_total = tl.load(theirs + inner[:, None] + wide[None, :], cache_modifier=".cg")
                total = total * old[:, None] + their_total * fresh[:, None]
                best = higher
        target = out + (skipped + row)[:, None] * (HEADS * D) + head * D + wide[None, :]
        tl.store(target, (total / weight[:, None]).to(dtype), mask=present[:, None] & (wide < D)[None, :])


def partial_size(heads: Heads, rows: int, splits: int, sequences: int) -> int:
    """float32 numbers of scratch."""
    return sequences * heads.num_heads * padded_rows(rows) * splits * (wide_enough(heads.head_dim) + 4)


def extend_attention(
    out: torch.Tensor,
    qkv: torch.Tensor,
    sequences: PackedSequences,
    angles: tuple[torch.Tensor, torch.Tensor],
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
    """Causal attention of a few rows to what is cached before them and to one another; their keys and values are kept.

    Args:
        out: ``[R, heads * D]``, R up to 64; rows that are not there are left as they are.
        qkv: ``[R, (heads + 2 kv_heads) * D]``, as the projection gave it.
        sequences: whose the rows are.
        angles: cosine and sine, ``[R, D / 2]`` each.
        heads: their numbers and size.
        layer: which layer of the cache.
        norm_weights: of RMS norms of queries and keys, or None.
        eps: of those norms.
        scale: usually ``D ** -0.5``.
        config: how the work is cut.
        partial: float32 scratch of at least ``partial_size`` numbers.
        semaphores: int32 zeros, one a head and sequence; left as zeros.
    """
    q_norm_weight, k_norm_weight = norm_weights or (qkv, qkv)
    overlapping, wide = overlap(out), wide_enough(heads.head_dim)
    asks = overlapping["DEPENDENT"] and wide * qkv.element_size() >= LINE.value
    launch(
        _extend_attention, (heads.num_heads, sequences.count, config.splits),
        out, qkv, *sequences.arguments, *sequences.metadata[5:].unbind(), *angles, q_norm_weight, k_norm_weight,
        partial, semaphores, eps, scale, layer,
        HEADS=heads.num_heads, KV_HEADS=heads.num_kv_heads, D=heads.head_dim, D_BLOCK=wide,
        HALF_BLOCK=wide_enough(heads.head_dim // 2), ROWS=padded_rows(len(qkv)), BLOCK=config.positions,
        STAGES=config.stages, SPLITS=config.splits, SHARED=sequences.shared, NORM=norm_weights is not None,
        PRECISION="ieee" if qkv.element_size() == 4 else "tf32", AHEAD=_AHEAD if asks else 0,
        num_warps=config.warps, **overlapping,
    )  # fmt: skip
