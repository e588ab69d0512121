"""Parts of all attention kernels: sizes of the heads, and one block of the online softmax."""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from unfuse.engines.graphed.kernels.launch import mma_padded


@dataclass(frozen=True, slots=True)
class Heads:
    """Sizes of a layer's attention."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    """D."""

    @property
    def group(self) -> int:
        """Query heads that share one head of keys and values."""
        return self.num_heads // self.num_kv_heads

    @property
    def width(self) -> int:
        """Columns of queries, keys and values together."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim


def partial_size(heads: Heads, rows: int, splits: int) -> int:
    """Return the size of the partial results, in float32 numbers."""
    return rows * heads.num_heads * splits * (mma_padded(heads.head_dim) + 4)


@triton.jit
def load_block(
    keys, values, start, length,
    HALF: tl.constexpr, HALF_BLOCK: tl.constexpr, D: tl.constexpr, D_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Load a block of cached keys, as two halves of their dimensions, and of values."""
    position = (start + tl.arange(0, BLOCK))[:, None]
    half_dims, dims = tl.arange(0, HALF_BLOCK)[None, :], tl.arange(0, D_BLOCK)[None, :]
    k_at, k_mask = keys + position * D + half_dims, (position < length) & (half_dims < HALF)
    low = tl.load(k_at, mask=k_mask, other=0.0)
    high = tl.load(k_at + HALF, mask=k_mask, other=0.0)
    return low, high, tl.load(values + position * D + dims, mask=(position < length) & (dims < D), other=0.0)


@triton.jit
def attend_block(
    q_low, q_high, k_low, k_high, v, start, length, scale, row_max, row_sum, acc,
    BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Update the running maximum, softmax denominator and weighted sum of values by a block of positions."""
    scores = tl.dot(q_low, tl.trans(k_low), input_precision=PRECISION)
    scores = tl.dot(q_high, tl.trans(k_high), scores, input_precision=PRECISION)
    scores = tl.where((start + tl.arange(0, BLOCK) < length)[None, :], scores * scale, float("-inf"))
    new_max = tl.maximum(row_max, tl.max(scores, axis=1))
    # A program may have no position at all: avoid inf - inf.
    safe = tl.where(new_max == float("-inf"), 0.0, new_max)
    rescale = tl.exp(row_max - safe)
    p = tl.exp(scores - safe[:, None])
    row_sum = row_sum * rescale + tl.sum(p, axis=1)
    acc = tl.dot(p.to(v.dtype), v, acc * rescale[:, None], input_precision=PRECISION)
    return new_max, row_sum, acc
