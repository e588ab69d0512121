"""Reproducible attention on a CUDA device."""

from __future__ import annotations

import pytest
import torch

from unfuse.engines.attention import reproducible_attention

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_long_cache_attention_repeats():
    """The shape on which the default attention of Hopper did not."""
    q, k, v = (torch.randn(1, 32, n, 128, device="cuda", dtype=torch.bfloat16) for n in (1, 660, 660))
    with reproducible_attention():
        first = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        for _ in range(200):
            assert torch.equal(torch.nn.functional.scaled_dot_product_attention(q, k, v), first)
