"""Attention of several sequences' new positions to a beginning that they share, read once for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from unfuse.engines.graphed.kernels.attention_common import Heads, attend_block, load_block
from unfuse.engines.graphed.kernels.launch import UNIT, launch, overlap, wide_enough

if TYPE_CHECKING:
    import torch

MEMBERS: Final = 16
"""Rows that read shared positions together: as many as matrix units take anyway."""
MAX_SHARED_SPLITS: Final = 4
"""Programs that share one head's positions, where rows share them too."""
_ENOUGH: Final = 512
"""Programs of a kernel that no more make faster."""


@dataclass(frozen=True, slots=True)
class SharedPrefixes:
    """Positions at the beginning of several rows' sequences that lie in one buffer, read once for all of them."""

    members: torch.Tensor
    """int32 ``[G, 16]``: rows of each group, -1 for none."""
    caches: torch.Tensor
    """int64 ``[G]``: where the buffer is, as in ``decode_attention``."""
    capacity: torch.Tensor
    """int32 ``[G]``, of that buffer."""
    length: torch.Tensor
    """int32 ``[G]``: positions that are shared; 0 for a group that is none."""
    shares: torch.Tensor
    """int32 ``[B]``: 1 for rows that are in a group."""
    partial: torch.Tensor
    """float32, at least ``partial_size(heads, B, splits)``: what is left for ``decode_attention``."""
    splits: int = MAX_SHARED_SPLITS
    """Programs that share one head's positions."""

    def first(self, groups: int, kv_heads: int) -> SharedPrefixes:
        """The same memory for fewer groups."""
        splits = min(MAX_SHARED_SPLITS, max(1, _ENOUGH // (groups * kv_heads)))
        return SharedPrefixes(
            self.members[:groups], self.caches[:groups], self.capacity[:groups], self.length[:groups],
            self.shares, self.partial, splits,
        )  # fmt: skip


@triton.jit
def _shared_prefix_attention(
    partial, qkv, base_pointer, members, caches, capacity, length, cosines, sines, q_norm_weight, eps, scale, layer,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, HALF_BLOCK: tl.constexpr, D_BLOCK: tl.constexpr,
    GROUP: tl.constexpr, MEMBERS: tl.constexpr, QUERIES: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
    STAGES: tl.constexpr, NORM: tl.constexpr, PRECISION: tl.constexpr, OVERLAP: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    group, kv_head, split = tl.program_id(0) // KV_HEADS, tl.program_id(0) % KV_HEADS, tl.program_id(1)
    if DEPENDENT:
        gdc_wait()
    if OVERLAP:
        gdc_launch_dependents()
    count = tl.load(length + group)
    if count == 0:
        return
    half: tl.constexpr = D // 2
    dtype: tl.constexpr = qkv.dtype.element_ty
    at, wide, query = tl.arange(0, HALF_BLOCK), tl.arange(0, D_BLOCK), tl.arange(0, QUERIES)
    inside = at < half
    row = tl.load(members + group * MEMBERS + query // GROUP, mask=query < MEMBERS * GROUP, other=-1)
    there = row >= 0
    asked = there[:, None] & inside[None, :]
    places = qkv + row[:, None].to(tl.int64) * ((HEADS + 2 * KV_HEADS) * D)
    places += (kv_head * GROUP + query % GROUP)[:, None] * D + at[None, :]
    low = tl.load(places, mask=asked, other=0.0).to(tl.float32)
    high = tl.load(places + half, mask=asked, other=0.0).to(tl.float32)
    if NORM:
        rms = tl.rsqrt((tl.sum(low * low, axis=1) + tl.sum(high * high, axis=1)) / D + eps)[:, None]
        low = (low * rms).to(dtype).to(tl.float32)
        high = (high * rms).to(dtype).to(tl.float32)
        low *= tl.load(q_norm_weight + at, mask=inside, other=0.0).to(tl.float32)[None, :]
        high *= tl.load(q_norm_weight + half + at, mask=inside, other=0.0).to(tl.float32)[None, :]
    angle = row[:, None] * half + at[None, :]
    cosine = tl.load(cosines + angle, mask=asked, other=0.0).to(tl.float32)
    sine = tl.load(sines + angle, mask=asked, other=0.0).to(tl.float32)
    q_low = (low * cosine - high * sine).to(dtype)
    q_high = (high * cosine + low * sine).to(dtype)

    size = tl.load(capacity + group).to(tl.int64) * D
    keys = base_pointer + tl.load(caches + group) * UNIT + (layer * (2 * KV_HEADS) + kv_head) * size
    values = keys + KV_HEADS * size
    best = tl.full([QUERIES], float("-inf"), tl.float32)
    weight = tl.zeros([QUERIES], tl.float32)
    total = tl.zeros([QUERIES, D_BLOCK], tl.float32)
    share = tl.cdiv(tl.cdiv(count, SPLITS), BLOCK) * BLOCK
    for start in tl.range(split * share, tl.minimum(split * share + share, count), BLOCK, num_stages=STAGES):
        k_low, k_high, v = load_block(keys, values, start, count, half, HALF_BLOCK, D, D_BLOCK, BLOCK)
        best, weight, total = attend_block(
            q_low, q_high, k_low, k_high, v, start, count, scale, best, weight, total, BLOCK, PRECISION
        )  # fmt: skip
    per_row: tl.constexpr = D_BLOCK + 4
    base = ((row * KV_HEADS + kv_head) * SPLITS + split) * GROUP + query % GROUP
    base = partial + base.to(tl.int64) * per_row
    tl.store(base + D_BLOCK, best, mask=there)
    tl.store(base + D_BLOCK + 1, weight, mask=there)
    tl.store(base[:, None] + wide[None, :], total, mask=there[:, None])


def shared_prefix_attention(
    shared: SharedPrefixes,
    qkv: torch.Tensor,
    base_pointer: torch.Tensor,
    angles: tuple[torch.Tensor, torch.Tensor],
    heads: Heads,
    layer: int,
    *,
    norm_weights: tuple[torch.Tensor, torch.Tensor] | None,
    eps: float,
    scale: float,
) -> None:
    """Attention of several rows to positions that they share, left in parts for ``decode_attention``.

    Read once for all of them, as Hydragen does (Juravsky et al., arXiv 2402.05099).

    Args:
        shared: which rows share what, and where the parts go.
        qkv: as ``decode_attention``.
        base_pointer: as ``decode_attention``.
        angles: as ``decode_attention``.
        heads: as ``decode_attention``.
        layer: as ``decode_attention``.
        norm_weights: as ``decode_attention``.
        eps: as ``decode_attention``.
        scale: as ``decode_attention``.
    """
    q_norm_weight = norm_weights[0] if norm_weights else qkv
    launch(
        _shared_prefix_attention, (len(shared.length) * heads.num_kv_heads, shared.splits),
        shared.partial, qkv, base_pointer, shared.members, shared.caches, shared.capacity, shared.length, *angles,
        q_norm_weight, eps, scale, layer,
        HEADS=heads.num_heads, KV_HEADS=heads.num_kv_heads, D=heads.head_dim,
        HALF_BLOCK=wide_enough(heads.head_dim // 2), D_BLOCK=wide_enough(heads.head_dim),
        GROUP=heads.group, MEMBERS=MEMBERS, QUERIES=wide_enough(MEMBERS * heads.group), SPLITS=shared.splits, BLOCK=64,
        STAGES=3, NORM=norm_weights is not None,
        PRECISION="ieee" if qkv.element_size() == 4 else "tf32", num_warps=4, **overlap(qkv),
    )  # fmt: skip
