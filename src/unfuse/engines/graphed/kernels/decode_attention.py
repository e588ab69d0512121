"""Attention of one new position a sequence, with what surrounds it: head norms, rotation, the cache's new entry.

A sequence's keys and values lie in one buffer ``[layers, 2, kv heads, capacity, D]`` of its own. A kernel finds them by
where they are in memory, so that one captured graph serves every request, whatever its length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from unfuse.engines.graphed.kernels.attention_common import Heads, attend_block, load_block
from unfuse.engines.graphed.kernels.launch import UNIT, launch, overlap, wide_enough

if TYPE_CHECKING:
    import torch

    from unfuse.engines.graphed.kernels.shared_prefix_attention import SharedPrefixes


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """How attention of a step is cut."""

    splits: int
    """Programs that share one head's positions."""
    positions: int
    """Positions a step."""
    warps: int
    stages: int


@triton.jit
def _head(base, norm_weight, eps, cosine, sine, at, HALF: tl.constexpr, D: tl.constexpr, NORM: tl.constexpr):
    """One head's two halves, normed and turned."""
    inside = at < HALF
    low = tl.load(base + at, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(base + HALF + at, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        dtype = base.dtype.element_ty
        scale = tl.rsqrt((tl.sum(low * low, axis=0) + tl.sum(high * high, axis=0)) / D + eps)
        low = (low * scale).to(dtype).to(tl.float32) * tl.load(norm_weight + at, mask=inside, other=0.0).to(tl.float32)
        high = (high * scale).to(dtype).to(tl.float32) * tl.load(norm_weight + HALF + at, mask=inside, other=0.0).to(
            tl.float32
        )
    return low * cosine - high * sine, high * cosine + low * sine


@triton.jit
def _joined(base, heads, wide, wanted, best, weight, total, per_row: tl.constexpr, D_BLOCK: tl.constexpr):
    """A sum over positions, and another that lies in memory."""
    their_best = tl.load(base + heads * per_row + D_BLOCK, mask=wanted, other=0.0, cache_modifier=".cg")
    higher = tl.maximum(best, their_best)
    # A part without positions has nothing to say; two such must not give inf - inf.
    safe = tl.where(higher == float("-inf"), 0.0, higher)
    old, fresh = tl.exp(best - safe), tl.exp(their_best - safe)
    their_weight = tl.load(base + heads * per_row + D_BLOCK + 1, mask=wanted, other=1.0, cache_modifier=".cg")
    theirs = tl.load(
        base + heads[:, None] * per_row + wide[None, :], mask=wanted[:, None], other=0.0, cache_modifier=".cg"
    )
    return higher, weight * old + fresh * their_weight, total * old[:, None] + theirs * fresh[:, None]


@triton.jit
def _decode_attention(
    out, qkv, base_pointer, caches, capacity, here, cosines, sines, q_norm_weight, k_norm_weight,
    partial, semaphores, before, shares, eps, scale, layer,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, HALF_BLOCK: tl.constexpr, D_BLOCK: tl.constexpr,
    GROUP: tl.constexpr, GROUP_BLOCK: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
    SHARED_SPLITS: tl.constexpr, NORM: tl.constexpr, PRECISION: tl.constexpr, OVERLAP: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    row, kv_head, split = tl.program_id(0) // KV_HEADS, tl.program_id(0) % KV_HEADS, tl.program_id(1)
    half: tl.constexpr = D // 2
    dtype: tl.constexpr = qkv.dtype.element_ty
    at = tl.arange(0, HALF_BLOCK)
    wide = tl.arange(0, D_BLOCK)
    heads = tl.arange(0, GROUP_BLOCK)
    inside, across = at < half, wide < D
    # Before the wait, only what the kernel ahead does not write. What others before it wrote is there: whoever is
    # ahead lets this one start only after its own wait.
    new = tl.load(here + row)
    room = tl.load(capacity + row)
    cosine = tl.load(cosines + row * half + at, mask=inside, other=0.0).to(tl.float32)
    sine = tl.load(sines + row * half + at, mask=inside, other=0.0).to(tl.float32)
    cache = base_pointer + tl.load(caches + row) * UNIT
    size = room.to(tl.int64) * D
    keys = cache + (layer * (2 * KV_HEADS) + kv_head) * size
    values = keys + KV_HEADS * size
    share = tl.cdiv(tl.cdiv(new, SPLITS), BLOCK) * BLOCK
    first = split * share
    k_low, k_high, v = load_block(keys, values, first, new, half, HALF_BLOCK, D, D_BLOCK, BLOCK)
    if DEPENDENT:
        gdc_wait()
    if OVERLAP:
        gdc_launch_dependents()

    mine = qkv + row * ((HEADS + 2 * KV_HEADS) * D)
    # Queries of the group, [GROUP, D / 2] twice.
    places = mine + (kv_head * GROUP + heads)[:, None] * D + at[None, :]
    asked = (heads < GROUP)[:, None] & inside[None, :]
    low = tl.load(places, mask=asked, other=0.0).to(tl.float32)
    high = tl.load(places + half, mask=asked, other=0.0).to(tl.float32)
    if NORM:
        rms = tl.rsqrt((tl.sum(low * low, axis=1) + tl.sum(high * high, axis=1)) / D + eps)[:, None]
        low = (low * rms).to(dtype).to(tl.float32)
        high = (high * rms).to(dtype).to(tl.float32)
        low *= tl.load(q_norm_weight + at, mask=inside, other=0.0).to(tl.float32)[None, :]
        high *= tl.load(q_norm_weight + half + at, mask=inside, other=0.0).to(tl.float32)[None, :]
    q_low = (low * cosine[None, :] - high * sine[None, :]).to(dtype)
    q_high = (high * cosine[None, :] + low * sine[None, :]).to(dtype)

    best = tl.full([GROUP_BLOCK], float("-inf"), tl.float32)
    weight = tl.zeros([GROUP_BLOCK], tl.float32)
    total = tl.zeros([GROUP_BLOCK, D_BLOCK], tl.float32)
    if split == SPLITS - 1:
        # The new position is taken from here, not from the cache: other programs read only what was there before.
        new_low, new_high = _head(
            mine + (HEADS + kv_head) * D, k_norm_weight, eps, cosine, sine, at, HALF=half, D=D, NORM=NORM
        )  # fmt: skip
        new_low, new_high = new_low.to(dtype), new_high.to(dtype)
        value = tl.load(mine + (HEADS + KV_HEADS + kv_head) * D + wide, mask=across, other=0.0)
        tl.store(keys + new * D + at, new_low, mask=inside)
        tl.store(keys + new * D + half + at, new_high, mask=inside)
        tl.store(values + new * D + wide, value, mask=across)
        best = scale * (
            tl.sum(q_low.to(tl.float32) * new_low.to(tl.float32)[None, :], axis=1)
            + tl.sum(q_high.to(tl.float32) * new_high.to(tl.float32)[None, :], axis=1)
        )
        weight = tl.full([GROUP_BLOCK], 1.0, tl.float32)
        total += value.to(tl.float32)[None, :]
    best, weight, total = attend_block(
        q_low, q_high, k_low, k_high, v, first, new, scale, best, weight, total, BLOCK, PRECISION
    )  # fmt: skip
    for start in tl.range(first + BLOCK, tl.minimum(first + share, new), BLOCK, num_stages=STAGES):
        k_low, k_high, v = load_block(keys, values, start, new, half, HALF_BLOCK, D, D_BLOCK, BLOCK)
        best, weight, total = attend_block(
            q_low, q_high, k_low, k_high, v, start, new, scale, best, weight, total, BLOCK, PRECISION
        )  # fmt: skip
    last = True
    per_row: tl.constexpr = D_BLOCK + 4
    wanted = heads < GROUP
    if SPLITS > 1:
        base = partial + (tl.program_id(0) * SPLITS + split) * (GROUP * per_row)
        tl.store(base + heads * per_row + D_BLOCK, best, mask=wanted)
        tl.store(base + heads * per_row + D_BLOCK + 1, weight, mask=wanted)
        tl.store(base + heads[:, None] * per_row + wide[None, :], total, mask=wanted[:, None])
        tl.debug_barrier()
        last = tl.atomic_add(semaphores + tl.program_id(0), 1, sem="acq_rel") == SPLITS - 1
    if last:
        if SPLITS > 1:
            tl.debug_barrier()
            tl.store(semaphores + tl.program_id(0), 0)
            # In the order of the splits, whoever does it: the same bits every time.
            best = tl.full([GROUP_BLOCK], float("-inf"), tl.float32)
            weight = tl.zeros([GROUP_BLOCK], tl.float32)
            total = tl.zeros([GROUP_BLOCK, D_BLOCK], tl.float32)
            for other in tl.static_range(SPLITS):
                base = partial + (tl.program_id(0) * SPLITS + other) * (GROUP * per_row)
                best, weight, total = _joined(base, heads, wide, wanted, best, weight, total, per_row, D_BLOCK)
        if SHARED_SPLITS > 0:  # noqa: SIM102 - of two kinds: one is decided when this is compiled
            if tl.load(shares + row) > 0:
                for other in tl.static_range(SHARED_SPLITS):
                    base = before + (tl.program_id(0) * SHARED_SPLITS + other) * (GROUP * per_row)
                    best, weight, total = _joined(base, heads, wide, wanted, best, weight, total, per_row, D_BLOCK)
        result = (total / weight[:, None]).to(dtype)
        target = out + row * (HEADS * D) + (kv_head * GROUP + heads)[:, None] * D + wide[None, :]
        tl.store(target, result, mask=(heads < GROUP)[:, None] & across[None, :])


def decode_attention(
    out: torch.Tensor,
    qkv: torch.Tensor,
    base_pointer: torch.Tensor,
    caches: torch.Tensor,
    capacity: torch.Tensor,
    here: torch.Tensor,
    angles: tuple[torch.Tensor, torch.Tensor],
    heads: Heads,
    layer: int,
    *,
    config: DecodeConfig,
    partial: torch.Tensor,
    semaphores: torch.Tensor,
    norm_weights: tuple[torch.Tensor, torch.Tensor] | None,
    eps: float,
    scale: float,
    shared: SharedPrefixes | None = None,
) -> None:
    """``softmax(q K^T scale) V`` with the new position included and written to the cache.

    Keys and values that are read in parts are put together after Dao et al. (Flash-Decoding, 2023).

    Args:
        out: ``[B, heads * D]``.
        qkv: ``[B, (heads + 2 kv_heads) * D]``, before norm and rotation.
        base_pointer: any tensor of the caches' dtype, which the caches' offsets count from. The compiler can rely on
            the alignment of an offset in whole units, but not on that of an address.
        caches: int64 ``[B]``, where the sequences' buffers ``[layers, 2, kv_heads, capacity, D]`` begin, in units of
            ``UNIT`` numbers from the anchor.
        capacity: int32 ``[B]``, positions that each buffer has room for.
        here: int32 ``[B]``, positions that it holds; the new one goes there.
        angles: cosine and sine, ``[B, D / 2]`` each.
        heads: their numbers and size.
        layer: which layer of the buffers.
        config: how the work is cut.
        partial: float32 scratch of at least ``partial_size`` numbers.
        semaphores: int32 zeros ``[B * kv_heads]``; left as zeros.
        norm_weights: of RMS norms of queries and keys, ``[D]`` each (Qwen3); None for none.
        eps: of those norms.
        scale: usually ``D ** -0.5``.
        shared: what ``shared_prefix_attention`` has left of positions before those of the buffers.
    """
    rows = len(here)
    q_norm_weight, k_norm_weight = norm_weights or (qkv, qkv)
    before, shares = (shared.partial, shared.shares) if shared else (partial, here)
    launch(
        _decode_attention, (rows * heads.num_kv_heads, config.splits),
        out, qkv, base_pointer, caches, capacity, here, *angles, q_norm_weight, k_norm_weight,
        partial, semaphores, before, shares, eps, scale, layer,
        HEADS=heads.num_heads, KV_HEADS=heads.num_kv_heads, D=heads.head_dim,
        HALF_BLOCK=wide_enough(heads.head_dim // 2), D_BLOCK=wide_enough(heads.head_dim),
        GROUP=heads.group, GROUP_BLOCK=wide_enough(heads.group), SPLITS=config.splits, BLOCK=config.positions,
        STAGES=config.stages, SHARED_SPLITS=shared.splits if shared else 0,
        NORM=norm_weights is not None,
        PRECISION="ieee" if qkv.element_size() == 4 else "tf32", num_warps=config.warps, **overlap(out),
    )  # fmt: skip
