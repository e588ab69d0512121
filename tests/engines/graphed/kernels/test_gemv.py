"""The GEMV against torch, on shapes that fit its tiles and shapes that do not."""

from __future__ import annotations

import pytest
from torch.nn.functional import silu

from tests.engines.graphed.kernels.reference import EPS, close, normal, rms
from unfuse.engines.graphed.kernels import gemv as one


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(
    ("n", "k", "config"),
    [
        (32, 64, one.GemvConfig(8, 32, 4, True)),
        (30, 100, one.GemvConfig(8, 32, 4, False)),
        (7, 20, one.GemvConfig(4, 64, 4, True)),
    ],
)
def test_gemv(dtype, n, k, config, normed, gated):
    weight, x = normal(n * (1 + gated), k, dtype=dtype), normal(k, dtype=dtype)
    norm_weight, bias = normal(k, dtype=dtype), normal(len(weight), dtype=dtype)
    out = normal(n, dtype=dtype)
    before = out.double()
    one.gemv(
        out,
        weight,
        x,
        config,
        norm_weight=norm_weight if normed else None,
        eps=EPS,
        bias=bias,
        add=not gated,
        gated=gated,
    )
    wanted = weight.double() @ (rms(x, norm_weight) if normed else x.double()) + bias.double()
    close(out, silu(wanted[:n]) * wanted[n:] if gated else before + wanted)
