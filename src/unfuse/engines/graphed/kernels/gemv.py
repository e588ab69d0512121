"""GEMV: one row times a weight matrix. Decoding one sequence is limited by reading the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from unfuse.engines.graphed.kernels.launch import launch, overlap
from unfuse.measure.products import declare, linear

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class GemvConfig:
    """Tile config of the GEMV."""

    rows: int
    """Outputs per program."""
    columns: int
    """Inputs per iteration."""
    warps: int
    pdl: bool
    """Programmatic dependent launch: start loading weights before the previous kernel has finished."""


CANDIDATES: Final = tuple(
    GemvConfig(*config)
    for config in (
        (2, 2048, 8, False),
        (2, 2048, 8, True),
        (2, 2048, 4, False),
        (2, 2048, 4, True),
        (2, 1024, 4, True),
        (1, 2048, 4, False),
        (4, 1024, 4, False),
        (4, 2048, 8, False),
        (2, 4096, 8, False),
        (8, 512, 8, True),
        # All weights of a program are requested before the wait.
        (1, 4096, 4, True),
        (2, 4096, 4, True),
        (2, 4096, 8, True),
        (4, 4096, 8, True),
        (4, 4096, 16, True),
        (8, 2048, 8, True),
    )
)


@triton.jit
def _tile(weight, rows, columns, N, K: tl.constexpr, ROWS_FIT: tl.constexpr, COLUMNS_FIT: tl.constexpr):
    at = weight + rows[:, None].to(tl.int64) * K + columns[None, :]
    if ROWS_FIT and COLUMNS_FIT:
        return tl.load(at, eviction_policy="evict_first")
    if ROWS_FIT:
        return tl.load(at, mask=columns[None, :] < K, other=0.0, eviction_policy="evict_first")
    inside = (rows[:, None] < N) & (columns[None, :] < K)
    return tl.load(at, mask=inside, other=0.0, eviction_policy="evict_first")


@triton.jit
def _gemv(
    out,
    weight,
    x,
    norm_weight,
    bias,
    N,
    eps,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS_FIT: tl.constexpr,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    ADD: tl.constexpr,
    GATED: tl.constexpr,
    OVERLAP: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    upper = weight + N.to(tl.int64) * K
    first = _tile(weight, rows, columns, N, K, ROWS_FIT, COLUMNS <= K)
    if GATED:
        first_up = _tile(upper, rows, columns, N, K, ROWS_FIT, COLUMNS <= K)
    if DEPENDENT:
        gdc_wait()
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    total_up = tl.zeros([ROWS, COLUMNS], tl.float32)
    square = tl.zeros([COLUMNS], tl.float32)
    for start in tl.static_range(0, K, COLUMNS):
        at = start + columns
        value = tl.load(x + at, mask=at < K, other=0.0).to(tl.float32)
        if NORM:
            square += value * value
            value *= tl.load(norm_weight + at, mask=at < K, other=0.0).to(tl.float32)
        tile = first if start == 0 else _tile(weight, rows, at, N, K, ROWS_FIT, start + COLUMNS <= K)
        total += tile.to(tl.float32) * value[None, :]
        if GATED:
            up = first_up if start == 0 else _tile(upper, rows, at, N, K, ROWS_FIT, start + COLUMNS <= K)
            total_up += up.to(tl.float32) * value[None, :]
    if OVERLAP:
        # After all loads were issued: the next kernel would compete with them.
        gdc_launch_dependents()
    result = tl.sum(total, axis=1)
    result_up = tl.sum(total_up, axis=1)
    if NORM:
        # The norm's factor is a scalar, so it is applied to the sums.
        scale = tl.rsqrt(tl.sum(square, axis=0) / K + eps)
        result *= scale
        result_up *= scale
    present = rows < N
    if BIAS:
        result += tl.load(bias + rows, mask=present, other=0.0).to(tl.float32)
        if GATED:
            result_up += tl.load(bias + N + rows, mask=present, other=0.0).to(tl.float32)
    if GATED:
        result = result * tl.sigmoid(result) * result_up
    if ADD:
        # A linear layer's output is rounded before it is added, as the model does it.
        result = result.to(weight.dtype.element_ty).to(tl.float32)
        result += tl.load(out + rows, mask=present, other=0.0).to(tl.float32)
    result = result.to(weight.dtype.element_ty)
    tl.store(out + rows, result.to(out.dtype.element_ty), mask=present)


def gemv(
    out: torch.Tensor,
    weight: torch.Tensor,
    x: torch.Tensor,
    config: GemvConfig,
    *,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    bias: torch.Tensor | None = None,
    add: bool = False,
    gated: bool = False,
) -> None:
    """Compute ``out = W norm(x) + bias``, rounded once to the weight's dtype after a float32 sum.

    Args:
        out: ``[N]``; with ``add`` the result is added to it. float32 keeps the rounded values.
        weight: ``[N, K]``, rows contiguous; with ``gated`` ``[2 N, K]``, gate above up.
        x: ``[K]``.
        config: tile config.
        norm_weight: ``[K]`` of an RMS norm of ``x`` (Zhang and Sennrich, arXiv 1910.07467); None for no norm.
        eps: of that norm.
        bias: ``[N]``, or ``[2 N]`` with ``gated``.
        add: add to ``out``.
        gated: ``silu(gate) * up`` (Shazeer, arXiv 2002.05202).
    """
    n, k = weight.shape
    n = n // 2 if gated else n
    declare("gemv", linear(1, k, len(weight)))
    launch(
        _gemv,
        (triton.cdiv(n, config.rows),),
        out,
        weight,
        x,
        weight if norm_weight is None else norm_weight,
        weight if bias is None else bias,
        n,
        eps,
        K=k,
        ROWS=config.rows,
        COLUMNS=config.columns,
        ROWS_FIT=n % config.rows == 0,
        NORM=norm_weight is not None,
        BIAS=bias is not None,
        ADD=add,
        GATED=gated,
        num_warps=config.warps,
        **overlap(weight, pdl=config.pdl),
    )
