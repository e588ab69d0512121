"""Benchmarks and checks with few repeats: most tests check the use of numbers, not their precision.

A test that sets a number of repeats gets it.
"""

from __future__ import annotations

import sys

import pytest

from unfuse.benchmarking import BenchSettings, pairs, price, reuse
from unfuse.verification.hooks import hooks_agree
from unfuse.verification.steady import steady
from unfuse.verification.timing import timing_additive


def use_few_repeats(patch: pytest.MonkeyPatch) -> None:
    """Make benchmarks and clock checks repeat a sample only as often as every code path needs."""
    patch.setitem(BenchSettings.__init__.__kwdefaults__, "noise_repeats", 1)
    patch.setattr(price, "TURNS", 2)  # too few to judge: other work on the machine would decide
    patch.setattr(reuse, "PAIRS", 0)
    patch.setattr(reuse, "ROUNDS", 1)
    patch.setattr(pairs, "is_steady", lambda totals_ms, minimum: len(totals_ms) >= minimum)
    for check, option, count in ((timing_additive, "pairs", 2), (hooks_agree, "pairs", 2), (steady, "runs", 10)):
        patch.setitem(check.__kwdefaults__, option, count)
        for name in ("_PATIENCE", "_WARM"):
            patch.setattr(sys.modules[check.__module__], name, 1, raising=False)
