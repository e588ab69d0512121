"""Matrix products of a layer, each done in the way that was fastest for its shape and number of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch

from unfuse.engines.graphed.kernels import few_rows as few
from unfuse.engines.graphed.kernels import matvec as one
from unfuse.engines.graphed.kernels.rows import gate, rms_norm
from unfuse.engines.graphed.structure import Linear

Several = few.FewRowsShape | Literal["library"]
Cut = one.MatvecShape | Several
LIBRARY: Final = "library"


@dataclass(frozen=True, slots=True)
class Scratch:
    """Memory that products share, each until the next."""

    normed: torch.Tensor
    """``[64, H]``"""
    wide: torch.Tensor
    """``[64, 2 I]``"""
    partial: torch.Tensor
    """float32"""
    arrived: torch.Tensor
    """int32 zeros"""


@dataclass(frozen=True, slots=True)
class Product:
    """One place in a layer where a matrix is multiplied: ``out (+)= f(W norm(x) + b)``."""

    name: str
    linears: Sequence[Linear]
    """Of every layer."""
    gains: Sequence[torch.Tensor] | None = None
    """Of the norm before it, of every layer."""
    eps: float = 0.0
    add: bool = False
    gated: bool = False

    def __call__(
        self,
        cut: Cut,
        layer: int,
        out: torch.Tensor,
        x: torch.Tensor,
        scratch: Scratch,
        *,
        rows: int,
    ) -> None:
        """Up to 64 rows: ``out [>= rows, N]`` from ``x [>= padded rows, K]``, in the way that ``cut`` says."""
        if not isinstance(cut, one.MatvecShape):
            self._run(cut, layer, out, x, scratch, rows)
            return
        linear = self.linears[layer]
        one.matvec(
            out[0], linear.weight, x[0], cut,
            gain=None if self.gains is None else self.gains[layer], eps=self.eps, bias=linear.bias, add=self.add,
            gated=self.gated,
        )  # fmt: skip

    def choices(self, scratch: Scratch, rows: int) -> list[Cut]:
        """Ways to do it for this number of rows; the first one always works."""
        weight = self.linears[0].weight
        if rows == 1:
            return list(one.CANDIDATES)
        if weight.dtype == torch.float32 and weight.is_cuda:
            return [LIBRARY]
        most = scratch.partial.numel()
        few_rows = [cut for cut in few.CANDIDATES if few.partial_size(len(weight), rows, cut, gated=self.gated) <= most]
        return [LIBRARY, *few_rows]

    def key(self, rows: int) -> str:
        """The shape's name, for whoever remembers what was fast."""
        weight = self.linears[0].weight
        parts = [self.name, *map(str, weight.shape), str(weight.dtype).removeprefix("torch."), f"{rows} rows"]
        return " ".join([*parts, *(["bias"] if self.linears[0].bias is not None else [])])

    def _run(self, cut: Several, layer: int, out: torch.Tensor, x: torch.Tensor, scratch: Scratch, rows: int) -> None:
        linear = self.linears[layer]
        gain = None if self.gains is None else self.gains[layer]
        if cut == LIBRARY:
            self.with_library(layer, out, x, scratch.normed, scratch.wide, rows=rows)
            return
        if gain is not None:
            rms_norm(scratch.normed, x, gain, self.eps, rows=rows)
            x = scratch.normed
        assert isinstance(cut, few.FewRowsShape)
        few.few_rows(
            out, linear.weight, x, cut,
            rows=rows, partial=scratch.partial, arrived=scratch.arrived, bias=linear.bias, add=self.add,
            gated=self.gated,
        )  # fmt: skip

    def with_library(
        self, layer: int, out: torch.Tensor, x: torch.Tensor, normed: torch.Tensor, wide: torch.Tensor, *, rows: int
    ) -> None:
        """The same through torch, for any number of rows.

        Args:
            layer: which.
            out: ``[>= rows, N]``.
            x: ``[>= rows, K]``.
            normed: memory ``[>= rows, K]`` for the norm's result.
            wide: memory ``[>= rows, 2 N]`` for gate and up side by side.
            rows: how many.
        """
        linear = self.linears[layer]
        if self.gains is not None:
            rms_norm(normed, x, self.gains[layer], self.eps, rows=rows)
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
    """Numbers of rows that are done in the same way: 1, and powers of two from 16 on."""
    return 1 if rows == 1 else few.padded_rows(rows)
