"""Attention of several sequences to a prefix that they share: its keys and values are read once for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from unfuse.engines.graphed.kernels.attention_common import Heads, attend_block, load_block
from unfuse.engines.graphed.kernels.launch import UNIT, launch, mma_padded, overlap

if TYPE_CHECKING:
    import torch

MEMBERS: Final = 16
"""Rows of a group: tensor cores take as many in any case."""
MAX_SHARED_SPLITS: Final = 4
"""Most programs per KV head and group that divide the prefix (split-K)."""
_ENOUGH_PROGRAMS: Final = 512
"""Programs from which more do not make the kernel faster."""


@dataclass(frozen=True, slots=True)
class SharedPrefixes:
    """Groups of rows; the sequences of a group begin with an equal prefix in one KV cache."""

    members: torch.Tensor
    """int32 ``[G, 16]``: rows of each group, -1 for none."""
    caches: torch.Tensor
    """int64 ``[G]``: offset of the prefix's KV cache, see ``decode_attention``."""
    capacity: torch.Tensor
    """int32 ``[G]``: capacity of that cache in positions."""
    length: torch.Tensor
    """int32 ``[G]``: length of the prefix; 0 for an unused group."""
    in_group: torch.Tensor
    """int32 ``[B]``: 1 for rows that are in a group."""
    partial: torch.Tensor
    """float32, at least ``partial_size(heads, B, splits)``: partial results for ``decode_attention`` to merge."""
    splits: int = MAX_SHARED_SPLITS
    """Programs per KV head and group."""

    def first(self, groups: int, kv_heads: int) -> SharedPrefixes:
        """Return views of the first groups."""
        splits = min(MAX_SHARED_SPLITS, max(1, _ENOUGH_PROGRAMS // (groups * kv_heads)))
        return SharedPrefixes(
            self.members[:groups], self.caches[:groups], self.capacity[:groups], self.length[:groups],
            self.in_group, self.partial, splits,
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
    prefix_length = tl.load(length + group)
    if prefix_length == 0:
        return
    half: tl.constexpr = D // 2
    dtype: tl.constexpr = qkv.dtype.element_ty
    half_dims, dims, query = tl.arange(0, HALF_BLOCK), tl.arange(0, D_BLOCK), tl.arange(0, QUERIES)
    half_mask = half_dims < half
    row = tl.load(members + group * MEMBERS + query // GROUP, mask=query < MEMBERS * GROUP, other=-1)
    present = row >= 0
    query_mask = present[:, None] & half_mask[None, :]
    query_ptr = qkv + row[:, None].to(tl.int64) * ((HEADS + 2 * KV_HEADS) * D)
    query_ptr += (kv_head * GROUP + query % GROUP)[:, None] * D + half_dims[None, :]
    low = tl.load(query_ptr, mask=query_mask, other=0.0).to(tl.float32)
    high = tl.load(query_ptr + half, mask=query_mask, other=0.0).to(tl.float32)
    if NORM:
        rms = tl.rsqrt((tl.sum(low * low, axis=1) + tl.sum(high * high, axis=1)) / D + eps)[:, None]
        low = (low * rms).to(dtype).to(tl.float32)
        high = (high * rms).to(dtype).to(tl.float32)
        low *= tl.load(q_norm_weight + half_dims, mask=half_mask, other=0.0).to(tl.float32)[None, :]
        high *= tl.load(q_norm_weight + half + half_dims, mask=half_mask, other=0.0).to(tl.float32)[None, :]
    angle_offset = row[:, None] * half + half_dims[None, :]
    cosine = tl.load(cosines + angle_offset, mask=query_mask, other=0.0).to(tl.float32)
    sine = tl.load(sines + angle_offset, mask=query_mask, other=0.0).to(tl.float32)
    q_low = (low * cosine - high * sine).to(dtype)
    q_high = (high * cosine + low * sine).to(dtype)

    kv_stride = tl.load(capacity + group).to(tl.int64) * D
    keys = base_pointer + tl.load(caches + group) * UNIT + (layer * (2 * KV_HEADS) + kv_head) * kv_stride
    values = keys + KV_HEADS * kv_stride
    row_max = tl.full([QUERIES], float("-inf"), tl.float32)
    row_sum = tl.zeros([QUERIES], tl.float32)
    acc = tl.zeros([QUERIES, D_BLOCK], tl.float32)
    split_length = tl.cdiv(tl.cdiv(prefix_length, SPLITS), BLOCK) * BLOCK
    for start in tl.range(
        split * split_length, tl.minimum(split * split_length + split_length, prefix_length), BLOCK, num_stages=STAGES
    ):
        k_low, k_high, v = load_block(keys, values, start, prefix_length, half, HALF_BLOCK, D, D_BLOCK, BLOCK)
        row_max, row_sum, acc = attend_block(
            q_low, q_high, k_low, k_high, v, start, prefix_length, scale, row_max, row_sum, acc, BLOCK, PRECISION
        )  # fmt: skip
    per_row: tl.constexpr = D_BLOCK + 4
    base = ((row * KV_HEADS + kv_head) * SPLITS + split) * GROUP + query % GROUP
    base = partial + base.to(tl.int64) * per_row
    tl.store(base + D_BLOCK, row_max, mask=present)
    tl.store(base + D_BLOCK + 1, row_sum, mask=present)
    tl.store(base[:, None] + dims[None, :], acc, mask=present[:, None])


def shared_prefix_attention(
    shared: SharedPrefixes,
    qkv: torch.Tensor,
    base_pointer: torch.Tensor,
    cos_sin: tuple[torch.Tensor, torch.Tensor],
    heads: Heads,
    layer: int,
    *,
    norm_weights: tuple[torch.Tensor, torch.Tensor] | None,
    eps: float,
    scale: float,
) -> None:
    """Compute partial results of rows over the prefixes that they share; ``decode_attention`` merges them.

    Keys and values of a prefix are read once for all rows, as in Hydragen (Juravsky et al., arXiv 2402.05099).

    Args:
        shared: groups, and memory of the partial results.
        qkv: see ``decode_attention``.
        base_pointer: see ``decode_attention``.
        cos_sin: see ``decode_attention``.
        heads: see ``decode_attention``.
        layer: see ``decode_attention``.
        norm_weights: see ``decode_attention``.
        eps: see ``decode_attention``.
        scale: see ``decode_attention``.
    """
    q_norm_weight = norm_weights[0] if norm_weights else qkv
    launch(
        _shared_prefix_attention, (len(shared.length) * heads.num_kv_heads, shared.splits),
        shared.partial, qkv, base_pointer, shared.members, shared.caches, shared.capacity, shared.length, *cos_sin,
        q_norm_weight, eps, scale, layer,
        HEADS=heads.num_heads, KV_HEADS=heads.num_kv_heads, D=heads.head_dim,
        HALF_BLOCK=mma_padded(heads.head_dim // 2), D_BLOCK=mma_padded(heads.head_dim),
        GROUP=heads.group, MEMBERS=MEMBERS, QUERIES=mma_padded(MEMBERS * heads.group), SPLITS=shared.splits, BLOCK=64,
        STAGES=3, NORM=norm_weights is not None,
        PRECISION="ieee" if qkv.element_size() == 4 else "tf32", num_warps=4, **overlap(qkv),
    )  # fmt: skip
