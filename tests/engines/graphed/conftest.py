"""Kernels run in an interpreter where there is no GPU: as few programs as show every path."""

from __future__ import annotations

import pytest

from tests.engines.graphed.small import DEVICE
from unfuse.engines.graphed import network, products
from unfuse.engines.graphed.kernels import few_rows, matvec


@pytest.fixture(scope="module")
def few_programs():
    """The interpreter runs one program after the other."""
    if DEVICE.type == "cuda":
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matvec, "CANDIDATES", (matvec.MatvecShape(64, 64, 4, True),))
        patch.setattr(few_rows, "CANDIDATES", (few_rows.FewRowsShape(64, 16, 2, 2, 4),))
        patch.setattr(products, "LIBRARY", few_rows.CANDIDATES[0])
        patch.setattr(network, "_PROGRAMS", 6)
        yield
