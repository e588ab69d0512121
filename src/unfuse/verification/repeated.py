"""Decide a check that reads a clock: a fault shows in every series, and noise of the machine in some."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from unfuse.verification.result import TimedOutcome

NUM_SERIES: Final = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """An interval of one series against the tolerance of a check, all in one unit."""

    low: float
    high: float
    least: float
    most: float
    """The tolerance is ``[least, most]``."""
    widest: float
    """Width of an interval that still answers the check."""

    @property
    def side(self) -> int:
        """1 if the whole interval is above the tolerance, -1 below it, 0 if the two touch."""
        return 1 if self.low > self.most else -1 if self.high < self.least else 0

    @property
    def answers(self) -> bool:
        """True if the interval touches the tolerance and is narrow enough."""
        return not self.side and self.high - self.low <= self.widest


def decide(series: Callable[[], Reading], *, most: int = NUM_SERIES) -> TimedOutcome:
    """Measure series until one of them passes the check, or ``most`` are measured.

    Returns:
        ``fail`` if the intervals of all series lie on one side of the tolerance, ``inconclusive`` if no interval
        answers the check.
    """
    readings: list[Reading] = []
    for _ in range(most):
        readings.append(series())
        if readings[-1].answers:
            return "pass"
        if not readings[-1].side:
            break  # wide: more noise would say no more
    sides = {reading.side for reading in readings}
    failed = len(readings) == most and sides in ({1}, {-1})
    return "fail" if failed else "inconclusive"
