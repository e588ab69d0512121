"""Decode attention: one new position per sequence, with head norms, rotary embedding and the write to the KV cache.

Each sequence has its own buffer ``[layers, 2, kv heads, capacity, D]`` of keys and values. The kernel reads its address
from memory, so one captured graph serves requests of every length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from unfuse.engines.graphed.kernels.attention_common import Heads, attend_block, load_block
from unfuse.engines.graphed.kernels.launch import UNIT, launch, mma_padded, overlap

if TYPE_CHECKING:
    import torch

    from unfuse.engines.graphed.kernels.shared_prefix_attention import SharedPrefixes


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """Tile config of decode attention."""

    splits: int
    """Programs per KV head that divide its positions (split-K)."""
    positions: int
    """Positions per iteration."""
    warps: int
    stages: int


@triton.jit
def _norm_and_rotate(
    base, norm_weight, eps, cosine, sine, half_dims, HALF: tl.constexpr, D: tl.constexpr, NORM: tl.constexpr
):
    """Return one head, normed and rotated, as two halves."""
    half_mask = half_dims < HALF
    low = tl.load(base + half_dims, mask=half_mask, other=0.0).to(tl.float32)
    high = tl.load(base + HALF + half_dims, mask=half_mask, other=0.0).to(tl.float32)
    if NORM:
        dtype = base.dtype.element_ty
        scale = tl.rsqrt((tl.sum(low * low, axis=0) + tl.sum(high * high, axis=0)) / D + eps)
        low = (low * scale).to(dtype).to(tl.float32) * tl.load(norm_weight + half_dims, mask=half_mask, other=0.0).to(
            tl.float32
        )
        high = (high * scale).to(dtype).to(tl.float32) * tl.load(
            norm_weight + HALF + half_dims, mask=half_mask, other=0.0
        ).to(tl.float32)
    return low * cosine - high * sine, high * cosine + low * sine


@triton.jit
def _merge_partial(base, heads, dims, head_mask, row_max, row_sum, acc, per_row: tl.constexpr, D_BLOCK: tl.constexpr):
    """Merge the running softmax with a partial result in memory."""
    their_max = tl.load(base + heads * per_row + D_BLOCK, mask=head_mask, other=0.0, cache_modifier=".cg")
    new_max = tl.maximum(row_max, their_max)
    # A part without positions has weight 0; avoid inf - inf for two of them.
    safe = tl.where(new_max == float("-inf"), 0.0, new_max)
    rescale, their_rescale = tl.exp(row_max - safe), tl.exp(their_max - safe)
    their_sum = tl.load(base + heads * per_row + D_BLOCK + 1, mask=head_mask, other=1.0, cache_modifier=".cg")
    theirs = tl.load(
        base + heads[:, None] * per_row + dims[None, :], mask=head_mask[:, None], other=0.0, cache_modifier=".cg"
    )
    return (
        new_max,
        row_sum * rescale + their_rescale * their_sum,
        acc * rescale[:, None] + theirs * their_rescale[:, None],
    )


@triton.jit
def _decode_attention(
    out, qkv, base_pointer, caches, capacity, write_position, cosines, sines, q_norm_weight, k_norm_weight,
    partial, semaphores, prefix_partial, in_group, eps, scale, layer,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, HALF_BLOCK: tl.constexpr, D_BLOCK: tl.constexpr,
    GROUP: tl.constexpr, GROUP_BLOCK: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
    SHARED_SPLITS: tl.constexpr, NORM: tl.constexpr, PRECISION: tl.constexpr, OVERLAP: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    row, kv_head, split = tl.program_id(0) // KV_HEADS, tl.program_id(0) % KV_HEADS, tl.program_id(1)
    half: tl.constexpr = D // 2
    dtype: tl.constexpr = qkv.dtype.element_ty
    half_dims = tl.arange(0, HALF_BLOCK)
    dims = tl.arange(0, D_BLOCK)
    heads = tl.arange(0, GROUP_BLOCK)
    half_mask, dim_mask = half_dims < half, dims < D
    # Before the wait, read only tensors that the previous kernel does not write. Results of earlier kernels are
    # complete: the previous kernel allows this one to start only after its own wait.
    position = tl.load(write_position + row)
    row_capacity = tl.load(capacity + row)
    cosine = tl.load(cosines + row * half + half_dims, mask=half_mask, other=0.0).to(tl.float32)
    sine = tl.load(sines + row * half + half_dims, mask=half_mask, other=0.0).to(tl.float32)
    cache = base_pointer + tl.load(caches + row) * UNIT
    size = row_capacity.to(tl.int64) * D
    keys = cache + (layer * (2 * KV_HEADS) + kv_head) * size
    values = keys + KV_HEADS * size
    split_length = tl.cdiv(tl.cdiv(position, SPLITS), BLOCK) * BLOCK
    split_start = split * split_length
    k_low, k_high, v = load_block(keys, values, split_start, position, half, HALF_BLOCK, D, D_BLOCK, BLOCK)
    if DEPENDENT:
        gdc_wait()
    if OVERLAP:
        gdc_launch_dependents()

    qkv_row = qkv + row * ((HEADS + 2 * KV_HEADS) * D)
    # Queries of the group: two halves [GROUP, D / 2].
    query_ptr = qkv_row + (kv_head * GROUP + heads)[:, None] * D + half_dims[None, :]
    query_mask = (heads < GROUP)[:, None] & half_mask[None, :]
    low = tl.load(query_ptr, mask=query_mask, other=0.0).to(tl.float32)
    high = tl.load(query_ptr + half, mask=query_mask, other=0.0).to(tl.float32)
    if NORM:
        rms = tl.rsqrt((tl.sum(low * low, axis=1) + tl.sum(high * high, axis=1)) / D + eps)[:, None]
        low = (low * rms).to(dtype).to(tl.float32)
        high = (high * rms).to(dtype).to(tl.float32)
        low *= tl.load(q_norm_weight + half_dims, mask=half_mask, other=0.0).to(tl.float32)[None, :]
        high *= tl.load(q_norm_weight + half + half_dims, mask=half_mask, other=0.0).to(tl.float32)[None, :]
    q_low = (low * cosine[None, :] - high * sine[None, :]).to(dtype)
    q_high = (high * cosine[None, :] + low * sine[None, :]).to(dtype)

    row_max = tl.full([GROUP_BLOCK], float("-inf"), tl.float32)
    row_sum = tl.zeros([GROUP_BLOCK], tl.float32)
    acc = tl.zeros([GROUP_BLOCK, D_BLOCK], tl.float32)
    if split == SPLITS - 1:
        # The new position is used from registers: other programs read only positions that were cached before.
        new_low, new_high = _norm_and_rotate(
            qkv_row + (HEADS + kv_head) * D, k_norm_weight, eps, cosine, sine, half_dims, HALF=half, D=D, NORM=NORM
        )  # fmt: skip
        new_low, new_high = new_low.to(dtype), new_high.to(dtype)
        value = tl.load(qkv_row + (HEADS + KV_HEADS + kv_head) * D + dims, mask=dim_mask, other=0.0)
        tl.store(keys + position * D + half_dims, new_low, mask=half_mask)
        tl.store(keys + position * D + half + half_dims, new_high, mask=half_mask)
        tl.store(values + position * D + dims, value, mask=dim_mask)
        row_max = scale * (
            tl.sum(q_low.to(tl.float32) * new_low.to(tl.float32)[None, :], axis=1)
            + tl.sum(q_high.to(tl.float32) * new_high.to(tl.float32)[None, :], axis=1)
        )
        row_sum = tl.full([GROUP_BLOCK], 1.0, tl.float32)
        acc += value.to(tl.float32)[None, :]
    row_max, row_sum, acc = attend_block(
        q_low, q_high, k_low, k_high, v, split_start, position, scale, row_max, row_sum, acc, BLOCK, PRECISION
    )  # fmt: skip
    for start in tl.range(
        split_start + BLOCK, tl.minimum(split_start + split_length, position), BLOCK, num_stages=STAGES
    ):
        k_low, k_high, v = load_block(keys, values, start, position, half, HALF_BLOCK, D, D_BLOCK, BLOCK)
        row_max, row_sum, acc = attend_block(
            q_low, q_high, k_low, k_high, v, start, position, scale, row_max, row_sum, acc, BLOCK, PRECISION
        )  # fmt: skip
    is_last = True
    per_row: tl.constexpr = D_BLOCK + 4
    head_mask = heads < GROUP
    if SPLITS > 1:
        base = partial + (tl.program_id(0) * SPLITS + split) * (GROUP * per_row)
        tl.store(base + heads * per_row + D_BLOCK, row_max, mask=head_mask)
        tl.store(base + heads * per_row + D_BLOCK + 1, row_sum, mask=head_mask)
        tl.store(base + heads[:, None] * per_row + dims[None, :], acc, mask=head_mask[:, None])
        tl.debug_barrier()
        is_last = tl.atomic_add(semaphores + tl.program_id(0), 1, sem="acq_rel") == SPLITS - 1
    if is_last:
        if SPLITS > 1:
            tl.debug_barrier()
            tl.store(semaphores + tl.program_id(0), 0)
            # The last program merges in the order of the splits, so the result is bitwise reproducible.
            row_max = tl.full([GROUP_BLOCK], float("-inf"), tl.float32)
            row_sum = tl.zeros([GROUP_BLOCK], tl.float32)
            acc = tl.zeros([GROUP_BLOCK, D_BLOCK], tl.float32)
            for other in tl.static_range(SPLITS):
                base = partial + (tl.program_id(0) * SPLITS + other) * (GROUP * per_row)
                row_max, row_sum, acc = _merge_partial(
                    base, heads, dims, head_mask, row_max, row_sum, acc, per_row, D_BLOCK
                )
        if SHARED_SPLITS > 0:  # noqa: SIM102 - the outer condition is a constant of the compiler
            if tl.load(in_group + row) > 0:
                for other in tl.static_range(SHARED_SPLITS):
                    base = prefix_partial + (tl.program_id(0) * SHARED_SPLITS + other) * (GROUP * per_row)
                    row_max, row_sum, acc = _merge_partial(
                        base, heads, dims, head_mask, row_max, row_sum, acc, per_row, D_BLOCK
                    )
        result = (acc / row_sum[:, None]).to(dtype)
        target = out + row * (HEADS * D) + (kv_head * GROUP + heads)[:, None] * D + dims[None, :]
        tl.store(target, result, mask=(heads < GROUP)[:, None] & dim_mask[None, :])


def decode_attention(
    out: torch.Tensor,
    qkv: torch.Tensor,
    base_pointer: torch.Tensor,
    caches: torch.Tensor,
    capacity: torch.Tensor,
    write_position: torch.Tensor,
    cos_sin: tuple[torch.Tensor, torch.Tensor],
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
    """Compute ``softmax(q K^T scale) V`` over cached and new positions, and write the new one to the cache.

    Partial results of the splits are merged as in Flash-Decoding (Dao et al., 2023).

    Args:
        out: ``[B, heads * D]``.
        qkv: ``[B, (heads + 2 kv_heads) * D]``, before norm and rotation.
        base_pointer: any tensor of the caches' dtype; the caches' offsets count from it. The compiler can rely on
            the alignment of an offset in whole units, but not on that of an address.
        caches: int64 ``[B]``, offsets of the buffers ``[layers, 2, kv_heads, capacity, D]`` in units of ``UNIT``
            numbers.
        capacity: int32 ``[B]``, capacity of each buffer in positions.
        write_position: int32 ``[B]``, number of cached positions, and index of the new position.
        cos_sin: cosine and sine of the rotary embedding, ``[B, D / 2]`` each.
        heads: sizes of the heads.
        layer: index of the layer.
        config: tile config.
        partial: float32 scratch of at least ``partial_size`` numbers.
        semaphores: int32 zeros ``[B * kv_heads]``; zeros again afterwards.
        norm_weights: of the RMS norms of queries and keys, ``[D]`` each (Qwen3); None for no norm.
        eps: of those norms.
        scale: usually ``D ** -0.5``.
        shared: partial results of ``shared_prefix_attention`` over prefixes in other buffers.
    """
    rows = len(write_position)
    q_norm_weight, k_norm_weight = norm_weights or (qkv, qkv)
    before, in_group = (shared.partial, shared.in_group) if shared else (partial, write_position)
    launch(
        _decode_attention, (rows * heads.num_kv_heads, config.splits),
        out, qkv, base_pointer, caches, capacity, write_position, *cos_sin, q_norm_weight, k_norm_weight,
        partial, semaphores, before, in_group, eps, scale, layer,
        HEADS=heads.num_heads, KV_HEADS=heads.num_kv_heads, D=heads.head_dim,
        HALF_BLOCK=mma_padded(heads.head_dim // 2), D_BLOCK=mma_padded(heads.head_dim),
        GROUP=heads.group, GROUP_BLOCK=mma_padded(heads.group), SPLITS=config.splits, BLOCK=config.positions,
        STAGES=config.stages, SHARED_SPLITS=shared.splits if shared else 0,
        NORM=norm_weights is not None,
        PRECISION="ieee" if qkv.element_size() == 4 else "tf32", num_warps=config.warps, **overlap(out),
    )  # fmt: skip
