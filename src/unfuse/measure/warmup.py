"""Warm-up: repeats of one sample until its time is steady, per input shape."""

from __future__ import annotations

from typing import Final

STEADY_WITHIN: Final = 0.10
"""A repeat is steady when it is no more than this far above the fastest so far."""
MAX_REPEATS: Final = 10


def is_steady(totals_ms: list[float], minimum: int) -> bool:
    """Return whether the last two repeats are near the fastest, after at least ``minimum`` repeats.

    Args:
        totals_ms: time of every repeat so far, in order.
        minimum: least number of repeats (``--num-warmups``).
    """
    if len(totals_ms) < max(minimum, 0):
        return False
    if len(totals_ms) >= MAX_REPEATS or minimum == 0:
        return True
    if len(totals_ms) < 2:
        return False
    limit = min(totals_ms) * (1 + STEADY_WITHIN)
    return all(total <= limit for total in totals_ms[-2:])
