"""Checksums on a CUDA device."""

from __future__ import annotations

import pytest
import torch

from unfuse.checksum import tensor_checksum

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_checksum_is_the_cpus():
    tensor = torch.randn(1001, 333).bfloat16()
    assert tensor_checksum(tensor.cuda()) == tensor_checksum(tensor)
