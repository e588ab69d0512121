"""The GEMV against torch, on shapes that fit its tiles and shapes that do not."""

from __future__ import annotations

import pytest
from torch.nn.functional import silu

from tests.engines.graphed.kernels.reference import EPS, close, normal, rms
from unfuse.engines.graphed.kernels import matvec as one


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(
    ("n", "k", "shape"),
    [
        (32, 64, one.MatvecShape(8, 32, 4, True)),
        (30, 100, one.MatvecShape(8, 32, 4, False)),
        (7, 20, one.MatvecShape(4, 64, 4, True)),
    ],
)
def test_matvec(dtype, n, k, shape, normed, gated):
    weight, x = normal(n * (1 + gated), k, dtype=dtype), normal(k, dtype=dtype)
    gain, bias = normal(k, dtype=dtype), normal(len(weight), dtype=dtype)
    out = normal(n, dtype=dtype)
    before = out.double()
    one.matvec(out, weight, x, shape, gain=gain if normed else None, eps=EPS, bias=bias, add=not gated, gated=gated)
    wanted = weight.double() @ (rms(x, gain) if normed else x.double()) + bias.double()
    close(out, silu(wanted[:n]) * wanted[n:] if gated else before + wanted)
