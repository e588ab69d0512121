"""What the attention kernels share: sizes of the heads, and one block of the online softmax."""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from unfuse.engines.graphed.kernels.launch import wide_enough


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
        """Of queries, keys and values side by side."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim


def partial_size(heads: Heads, rows: int, splits: int) -> int:
    """float32 numbers of scratch."""
    return rows * heads.num_heads * splits * (wide_enough(heads.head_dim) + 4)


@triton.jit
def load_block(
    keys, values, start, new,
    HALF: tl.constexpr, HALF_BLOCK: tl.constexpr, D: tl.constexpr, D_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Keys, in two halves, and values of some cached positions."""
    place = (start + tl.arange(0, BLOCK))[:, None]
    at, wide = tl.arange(0, HALF_BLOCK)[None, :], tl.arange(0, D_BLOCK)[None, :]
    k_at, k_mask = keys + place * D + at, (place < new) & (at < HALF)
    low = tl.load(k_at, mask=k_mask, other=0.0)
    high = tl.load(k_at + HALF, mask=k_mask, other=0.0)
    return low, high, tl.load(values + place * D + wide, mask=(place < new) & (wide < D), other=0.0)


@triton.jit
def attend_block(
    q_low, q_high, k_low, k_high, v, start, new, scale, best, weight, total,
    BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Goes on with a sum over positions: their largest score, their weight and what they add up to."""
    scores = tl.dot(q_low, tl.trans(k_low), input_precision=PRECISION)
    scores = tl.dot(q_high, tl.trans(k_high), scores, input_precision=PRECISION)
    scores = tl.where((start + tl.arange(0, BLOCK) < new)[None, :], scores * scale, float("-inf"))
    higher = tl.maximum(best, tl.max(scores, axis=1))
    # A program may have no position at all: it must not give inf - inf.
    safe = tl.where(higher == float("-inf"), 0.0, higher)
    old = tl.exp(best - safe)
    p = tl.exp(scores - safe[:, None])
    weight = weight * old + tl.sum(p, axis=1)
    total = tl.dot(p.to(v.dtype), v, total * old[:, None], input_precision=PRECISION)
    return higher, weight, total
