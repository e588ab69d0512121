"""Products of a few rows against torch, on shapes that fit the tiles and shapes that do not."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import silu

from tests.engines.graphed.kernels.reference import DEVICE, close, normal
from unfuse.engines.graphed.kernels import skinny_gemm as few


@pytest.mark.parametrize("rows", [2, 16, 20])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("n", "k", "config"),
    [
        (32, 64, few.SkinnyGemmConfig(16, 16, 1, 2, 4)),
        (40, 72, few.SkinnyGemmConfig(16, 32, 2, 2, 4)),
        (16, 128, few.SkinnyGemmConfig(16, 16, 4, 3, 4)),
    ],
)
def test_skinny_gemm(dtype, n, k, config, gated, rows):
    weight, x = normal(n * (1 + gated), k, dtype=dtype), normal(few.padded_rows(rows), k, dtype=dtype)
    bias, out = normal(len(weight), dtype=dtype), normal(rows, n, dtype=dtype)
    before = out.double()
    partial = torch.full((few.partial_size(len(weight), rows, config, gated=gated) + 1,), float("nan"), device=DEVICE)
    semaphores = torch.zeros(16, dtype=torch.int32, device=DEVICE)
    few.skinny_gemm(
        out, weight, x, config, rows=rows, partial=partial, semaphores=semaphores, bias=bias, add=not gated, gated=gated
    )
    wanted = x[:rows].double() @ weight.double().t() + bias.double()
    close(out, silu(wanted[:, :n]) * wanted[:, n:] if gated else before + wanted)
    assert not semaphores.any()
