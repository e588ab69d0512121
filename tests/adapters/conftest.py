"""Tiny models of each family, staged."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import families


@pytest.fixture(scope="module", params=list(families.FAMILIES))
def family(request):
    return families.build(request.param)
