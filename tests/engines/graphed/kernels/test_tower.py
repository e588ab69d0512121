"""Kernels of the vision tower against torch."""

from __future__ import annotations

import pytest
import torch

from tests.engines.graphed.kernels.reference import EPS, close, normal
from unfuse.engines.graphed.kernels import tower


@pytest.mark.parametrize("config", [*tower.CANDIDATES, tower.FLOAT32_CONFIG], ids=str)
@pytest.mark.parametrize(("images", "positions", "heads", "size"), [(2, 65, 2, 16), (1, 130, 1, 24), (3, 16, 2, 16)])
def test_tower_attention(dtype, images, positions, heads, size, config):
    qkv = normal(images * positions, 3 * heads * size, dtype=dtype)
    out = qkv.new_empty(len(qkv), heads * size)
    tower.tower_attention(out, qkv, images, heads, size**-0.5, config)
    q, k, v = qkv.double().view(images, positions, 3, heads, size).permute(2, 0, 3, 1, 4)
    attended = (q @ k.transpose(-1, -2) * size**-0.5).softmax(-1) @ v
    close(out, attended.transpose(1, 2).reshape(len(qkv), -1))


@pytest.mark.parametrize("width", [32, 48])
def test_layer_norm(dtype, width):
    x, norm_weight, shift, bias = normal(5, width, dtype=dtype), *(normal(width, dtype=dtype) for _ in range(3))
    out, residual = torch.empty_like(x), torch.empty_like(x)
    tower.layer_norm(out, residual, x, norm_weight, shift, bias, EPS)
    close(out, torch.nn.functional.layer_norm(x.double(), (width,), norm_weight.double(), shift.double(), EPS))
    close(residual, x.double() + bias.double())


@pytest.mark.parametrize("kind", tower.ACTIVATIONS)
def test_activations(dtype, kind):
    x = 3 * normal(7, 700, dtype=dtype)
    exact = {
        "quick_gelu": lambda z: z * torch.sigmoid(1.702 * z),
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda z: torch.nn.functional.gelu(z, approximate="tanh"),
    }[kind](x.double())
    tower.activate(x, kind)
    close(x, exact)
