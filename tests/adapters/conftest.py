"""Tiny models of each family, staged."""

from __future__ import annotations

import pytest

from tests.adapters import families


@pytest.fixture(scope="module", params=list(families.FAMILIES))
def family(request):
    return families.build(request.param)
