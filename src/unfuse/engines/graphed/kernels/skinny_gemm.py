"""Skinny GEMM: up to 64 rows times a weight matrix, for decoding several sequences or extending a cached prompt.

Reading the weights still takes most of the time, so the weights stream through shared memory. The rows are the narrow
dimension of each product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from unfuse.engines.graphed.kernels.launch import LINE, launch, overlap, prefetch_l2
from unfuse.measure.products import declare, linear

if TYPE_CHECKING:
    import torch

MAX_SKINNY_ROWS: Final = 64
_PREFETCHED: Final = 512
"""Weights per output that are prefetched before the previous kernel has finished."""


@dataclass(frozen=True, slots=True)
class SkinnyGemmConfig:
    """Tile config of the skinny GEMM."""

    outputs: int
    """Outputs per program."""
    depth: int
    """Inputs per iteration."""
    split: int
    """Programs per output that divide its inputs (split-K)."""
    stages: int
    warps: int


CANDIDATES: Final = tuple(
    SkinnyGemmConfig(*config)
    for config in (
        (64, 128, 1, 4, 4),
        (64, 128, 4, 4, 4),
        (64, 128, 2, 4, 4),
        (64, 128, 1, 6, 4),
        (64, 128, 2, 6, 4),
        (64, 256, 2, 3, 4),
        (128, 128, 1, 3, 8),
        (32, 128, 1, 4, 4),
        (32, 256, 1, 4, 4),
        (128, 128, 4, 3, 8),
    )
)


@triton.jit
def _skinny_gemm(
    out,
    weight,
    x,
    bias,
    partial,
    semaphores,
    M,
    N,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    DEPTH: tl.constexpr,
    SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
    EVEN: tl.constexpr,
    BIAS: tl.constexpr,
    ADD: tl.constexpr,
    GATED: tl.constexpr,
    PRECISION: tl.constexpr,
    PREFETCH: tl.constexpr,
    OVERLAP: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    block, split = tl.program_id(0), tl.program_id(1)
    outputs = block * OUTPUTS + tl.arange(0, OUTPUTS)
    rows = tl.arange(0, ROWS)
    depth = tl.arange(0, DEPTH)
    steps: tl.constexpr = (K + DEPTH - 1) // DEPTH
    steps_per_split: tl.constexpr = (steps + SPLIT - 1) // SPLIT
    if PREFETCH > 0:
        a_line: tl.constexpr = LINE // (weight.dtype.element_ty.primitive_bitwidth // 8)
        lines = split * steps_per_split * DEPTH + tl.arange(0, PREFETCH // a_line) * a_line
        prefetched = weight + outputs[:, None].to(tl.int64) * K + lines[None, :]
        prefetch_l2(prefetched)
        if GATED:
            prefetch_l2(prefetched + N.to(tl.int64) * K)
    if DEPENDENT:
        gdc_wait()
    if OVERLAP:
        gdc_launch_dependents()
    w_at = weight + outputs[:, None].to(tl.int64) * K + depth[None, :]
    up_at = w_at + N.to(tl.int64) * K
    x_at = x + rows[None, :] * K + depth[:, None]
    total = tl.zeros([OUTPUTS, ROWS], tl.float32)
    total_up = tl.zeros([OUTPUTS, ROWS], tl.float32)
    for step in tl.range(
        split * steps_per_split, tl.minimum(split * steps_per_split + steps_per_split, steps), num_stages=STAGES
    ):
        start = step * DEPTH
        if EVEN:
            w = tl.load(w_at + start, eviction_policy="evict_first")
            value = tl.load(x_at + start)
        else:
            inside = start + depth < K
            w = tl.load(w_at + start, mask=(outputs[:, None] < N) & inside[None, :], other=0.0)
            value = tl.load(x_at + start, mask=inside[:, None], other=0.0)
        total = tl.dot(w, value, total, input_precision=PRECISION)
        if GATED:
            if EVEN:
                up = tl.load(up_at + start, eviction_policy="evict_first")
            else:
                up = tl.load(up_at + start, mask=(outputs[:, None] < N) & inside[None, :], other=0.0)
            total_up = tl.dot(up, value, total_up, input_precision=PRECISION)
    is_last = True
    if SPLIT > 1:
        # The last program adds the parts, always in the same order.
        blocks = tl.num_programs(0)
        inner = tl.arange(0, OUTPUTS)[:, None] * ROWS + rows[None, :]
        size: tl.constexpr = OUTPUTS * ROWS
        own_partial = partial + (split * blocks + block) * (size * (2 if GATED else 1))
        tl.store(own_partial + inner, total)
        if GATED:
            tl.store(own_partial + size + inner, total_up)
        tl.debug_barrier()
        is_last = tl.atomic_add(semaphores + block, 1, sem="acq_rel") == SPLIT - 1
    if is_last:
        if SPLIT > 1:
            tl.debug_barrier()
            tl.store(semaphores + block, 0)
            total = tl.zeros([OUTPUTS, ROWS], tl.float32)
            total_up = tl.zeros([OUTPUTS, ROWS], tl.float32)
            for other in tl.static_range(SPLIT):
                theirs = partial + (other * blocks + block) * (size * (2 if GATED else 1))
                total += tl.load(theirs + inner, cache_modifier=".cg")
                if GATED:
                    total_up += tl.load(theirs + size + inner, cache_modifier=".cg")
        if BIAS:
            total += tl.load(bias + outputs, mask=outputs < N, other=0.0).to(tl.float32)[:, None]
            if GATED:
                total_up += tl.load(bias + N + outputs, mask=outputs < N, other=0.0).to(tl.float32)[:, None]
        if GATED:
            total = total * tl.sigmoid(total) * total_up
        at = out + rows[None, :] * N + outputs[:, None]
        present = (rows[None, :] < M) & (outputs[:, None] < N)
        if ADD:
            # A linear layer's output is rounded before it is added, as the model does it.
            total = total.to(weight.dtype.element_ty).to(tl.float32)
            total += tl.load(at, mask=present, other=0.0).to(tl.float32)
        tl.store(at, total.to(weight.dtype.element_ty).to(out.dtype.element_ty), mask=present)


def padded_rows(rows: int) -> int:
    """Return the rows that ``skinny_gemm`` reads: a power of two, at least 16, for tensor cores."""
    return max(16, 1 << (rows - 1).bit_length())


def partial_size(n: int, rows: int, config: SkinnyGemmConfig, *, gated: bool) -> int:
    """Return the size of the partial sums of a split product, in float32 numbers."""
    if config.split == 1:
        return 0
    blocks = triton.cdiv(n // 2 if gated else n, config.outputs)
    return config.split * blocks * config.outputs * padded_rows(rows) * (2 if gated else 1)


def skinny_gemm(
    out: torch.Tensor,
    weight: torch.Tensor,
    x: torch.Tensor,
    config: SkinnyGemmConfig,
    *,
    rows: int,
    partial: torch.Tensor,
    semaphores: torch.Tensor,
    bias: torch.Tensor | None = None,
    add: bool = False,
    gated: bool = False,
) -> None:
    """Compute ``out = x W^T + bias``, rounded once to the weight's dtype after a float32 sum.

    Args:
        out: ``[rows, N]``; with ``add`` the result is added to it.
        weight: ``[N, K]``, or ``[2 N, K]`` with ``gated``, gate above up.
        x: ``[padded_rows(rows), K]``; rows beyond ``rows`` are read but do not affect the result.
        config: tile config.
        rows: of ``out``, at most 64.
        partial: float32 scratch of at least ``partial_size`` numbers.
        semaphores: int32 zeros, one for each block of outputs; zeros again afterwards.
        bias: ``[N]``, or ``[2 N]`` with ``gated``.
        add: add to ``out``.
        gated: ``silu(gate) * up``.
    """
    n, k = weight.shape
    n = n // 2 if gated else n
    overlapping = overlap(weight)
    even = n % config.outputs == 0 and k % config.depth == 0
    # Only if every split is long enough, so that no address outside the matrix is prefetched.
    prefetched = (
        _PREFETCHED if overlapping["DEPENDENT"] and even and k // config.split - config.depth >= _PREFETCHED else 0
    )
    declare("skinny_gemm", linear(rows, k, len(weight)))
    launch(
        _skinny_gemm,
        (triton.cdiv(n, config.outputs), config.split),
        out,
        weight,
        x,
        weight if bias is None else bias,
        partial,
        semaphores,
        rows,
        n,
        K=k,
        ROWS=padded_rows(rows),
        OUTPUTS=config.outputs,
        DEPTH=config.depth,
        SPLIT=config.split,
        STAGES=config.stages,
        EVEN=even,
        BIAS=bias is not None,
        ADD=add,
        GATED=gated,
        PRECISION="ieee" if weight.element_size() == 4 else "tf32",
        PREFETCH=prefetched,
        num_warps=config.warps,
        **overlapping,
    )
