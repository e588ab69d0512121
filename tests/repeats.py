"""Benchmarks and checks of a few repeats: most tests look at what is said of numbers, not at how sure they are.

Repeats that a test asks for are the ones it gets.
"""

from __future__ import annotations

import sys

import pytest

from unfuse.protocols import BenchSettings, pairs
from unfuse.verification.hooks import hooks_agree
from unfuse.verification.steady import steady
from unfuse.verification.timing import timing_additive


def use_few_repeats(patch: pytest.MonkeyPatch) -> None:
    """Let a benchmark and the checks that read the clock repeat a sample as often as shows every path."""
    patch.setitem(BenchSettings.__init__.__kwdefaults__, "noise_repeats", 1)
    patch.setattr(pairs, "is_steady", lambda totals_ms, minimum: len(totals_ms) >= minimum)
    for check, option, count in ((timing_additive, "pairs", 2), (hooks_agree, "pairs", 2), (steady, "runs", 10)):
        patch.setitem(check.__kwdefaults__, option, count)
        for name in ("_PATIENCE", "_WARM"):
            patch.setattr(sys.modules[check.__module__], name, 1, raising=False)
