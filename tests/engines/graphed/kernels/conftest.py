"""Fixtures of the tests of kernels."""

from __future__ import annotations

import pytest
import torch

from tests.engines.graphed.kernels.reference import DTYPES


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param
