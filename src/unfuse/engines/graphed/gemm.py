"""Matrix products of a layer, each by the kernel and tile config that was fastest for its shape and rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch

from unfuse.engines.graphed.kernels import gemv, skinny_gemm
from unfuse.engines.graphed.kernels.norm_rope import gate, rms_norm
from unfuse.engines.graphed.llama import Linear

BatchedGemmConfig = skinny_gemm.SkinnyGemmConfig | Literal["library"]
GemmConfig = gemv.GemvConfig | BatchedGemmConfig
LIBRARY: Final = "library"


@dataclass(frozen=True, slots=True)
class Scratch:
    """Scratch memory that all products share."""

    normed: torch.Tensor
    """``[64, H]``"""
    wide: torch.Tensor
    """``[64, 2 I]``"""
    partial: torch.Tensor
    """float32 partial sums of split-K products"""
    semaphores: torch.Tensor
    """int32 zeros, left as zeros: split-K arrival counts"""


@dataclass(frozen=True, slots=True)
class Gemm:
    """One product of a layer, with the norm before it and the activation after it: ``out (+)= f(W norm(x) + b)``."""

    name: str
    linears: Sequence[Linear]
    """One for each layer."""
    norm_weights: Sequence[torch.Tensor] | None = None
    """One for each layer; None for a product without a norm before it."""
    eps: float = 0.0
    add: bool = False
    gated: bool = False

    def __call__(
        self,
        config: GemmConfig,
        layer: int,
        out: torch.Tensor,
        x: torch.Tensor,
        scratch: Scratch,
        *,
        rows: int,
    ) -> None:
        """Compute the product of a layer for the first ``rows`` rows (at most 64), with norm, gate or residual.

        ``x`` is ``[M, K]`` with at least ``padded_rows(rows)`` rows, ``out`` is ``[M, N]`` with at least ``rows`` rows.
        """
        if not isinstance(config, gemv.GemvConfig):
            self._run(config, layer, out, x, scratch, rows)
            return
        linear = self.linears[layer]
        gemv.gemv(
            out[0], linear.weight, x[0], config,
            norm_weight=None if self.norm_weights is None else self.norm_weights[layer], eps=self.eps,
            bias=linear.bias, add=self.add, gated=self.gated,
        )  # fmt: skip

    def candidates(self, scratch: Scratch, rows: int) -> list[GemmConfig]:
        """Return configs for this number of rows. The first one always works."""
        weight = self.linears[0].weight
        if rows == 1:
            return list(gemv.CANDIDATES)
        if weight.dtype == torch.float32 and weight.is_cuda:
            return [LIBRARY]
        most = scratch.partial.numel()

        def fits(config: skinny_gemm.SkinnyGemmConfig) -> bool:
            return skinny_gemm.partial_size(len(weight), rows, config, gated=self.gated) <= most

        return [LIBRARY, *filter(fits, skinny_gemm.CANDIDATES)]

    def key(self, rows: int) -> str:
        """Return the name of the problem in the tuning file."""
        weight = self.linears[0].weight
        parts = [self.name, *map(str, weight.shape), str(weight.dtype).removeprefix("torch."), f"{rows} rows"]
        return " ".join([*parts, *(["bias"] if self.linears[0].bias is not None else [])])

    def _run(
        self, config: BatchedGemmConfig, layer: int, out: torch.Tensor, x: torch.Tensor, scratch: Scratch, rows: int
    ) -> None:
        linear = self.linears[layer]
        norm_weight = None if self.norm_weights is None else self.norm_weights[layer]
        if config == LIBRARY:
            self.with_library(layer, out, x, scratch.normed, scratch.wide, rows=rows)
            return
        if norm_weight is not None:
            rms_norm(scratch.normed, x, norm_weight, self.eps, rows=rows)
            x = scratch.normed
        assert isinstance(config, skinny_gemm.SkinnyGemmConfig)
        skinny_gemm.skinny_gemm(
            out, linear.weight, x, config,
            rows=rows, partial=scratch.partial, semaphores=scratch.semaphores, bias=linear.bias, add=self.add,
            gated=self.gated,
        )  # fmt: skip

    def with_library(
        self, layer: int, out: torch.Tensor, x: torch.Tensor, normed: torch.Tensor, wide: torch.Tensor, *, rows: int
    ) -> None:
        """Compute the product by cuBLAS, for any number of rows.

        Args:
            layer: index.
            out: ``[>= rows, N]``.
            x: ``[>= rows, K]``.
            normed: scratch ``[>= rows, K]`` for the normalised input.
            wide: scratch ``[>= rows, 2 N]`` for gate and up.
            rows: number of rows.
        """
        linear = self.linears[layer]
        if self.norm_weights is not None:
            rms_norm(normed, x, self.norm_weights[layer], self.eps, rows=rows)
            x = normed
        x, out, weight = x[:rows], out[:rows], linear.weight.t()
        target = wide[:rows] if self.gated else out
        if self.add:
            torch.addmm(out, x, weight, out=out)
            if linear.bias is not None:
                out += linear.bias
        elif target.dtype != x.dtype:
            target.copy_(torch.mm(x, weight) if linear.bias is None else torch.addmm(linear.bias, x, weight))
        elif linear.bias is None:
            torch.mm(x, weight, out=target)
        else:
            torch.addmm(linear.bias, x, weight, out=target)
        if self.gated:
            gate(out, target)


def bucket(rows: int) -> int:
    """Return the number of rows that the configs are chosen for: 1, or a power of two from 16 on."""
    return 1 if rows == 1 else skinny_gemm.padded_rows(rows)
