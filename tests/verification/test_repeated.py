"""A fault shows in every series, noise in some."""

from __future__ import annotations

import pytest

from unfuse.verification.repeated import Reading, decide


@pytest.mark.parametrize(
    ("intervals", "outcome", "measured"),
    [
        ([(-0.5, 0.5)], "pass", 1),
        ([(0.5, 3.0)], "pass", 1),
        ([(1.5, 3.0), (-0.5, 0.5)], "pass", 2),
        ([(1.5, 3.0), (2.0, 3.0), (1.2, 9.0)], "fail", 3),
        ([(-9.0, -1.2), (-3.0, -2.0), (-3.0, -2.0)], "fail", 3),
        ([(1.5, 3.0), (-3.0, -1.5), (1.5, 3.0)], "inconclusive", 3),
        ([(-20.0, 20.0)], "inconclusive", 1),
        ([(1.5, 30.0), (-20.0, 20.0)], "inconclusive", 2),
    ],
)
def test_decisions(intervals, outcome, measured):
    readings = iter([Reading(low=low, high=high, least=-1.0, most=1.0, widest=5.0) for low, high in intervals])
    assert decide(lambda: next(readings)) == outcome
    assert len(intervals) - len(list(readings)) == measured
