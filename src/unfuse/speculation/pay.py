"""Estimate of the gain from drafts: a pass over several tokens takes longer than a pass over one."""

from __future__ import annotations

from typing import Final

from unfuse.speculation.drafter import MAX_DRAFT

_COST: Final = ((0, 0.0), (3, 0.012), (7, 0.045), (MAX_DRAFT, 0.18))
"""By the number of drafted tokens: extra time as a share of a one-token pass (7B in bfloat16 on an H200:
3.43 ms, and 3.47, 3.58 and 4.02 with 3, 7 and 15 drafted tokens)."""
_WEIGHT: Final = 0.1
"""Of the newest pass in the moving average."""
_DRAFTLESS: Final = 128
"""Passes in a row without a draft after which passes do not wait for a draft: waiting costs 1 to 2 % of a pass."""
_PROBE_TOKENS: Final = 7
_PROBE_PASSES: Final = 16
"""A draft that does not pay is tried again in one pass of so many, at a cost of 0.3 %."""


class PayEstimate:
    """Moving average of the gain of a pass, in one-token passes."""

    def __init__(self) -> None:
        self._gain = 1.0
        self._draftless = 0
        """Passes in a row for which there was no draft."""
        self._passes = 0

    def limit(self, limit: int) -> int:
        """Return how many tokens the next pass may draft, at most ``limit``."""
        if self._gain > 0 and self._draftless < _DRAFTLESS:
            return limit
        return min(limit, _PROBE_TOKENS) if self._passes % _PROBE_PASSES == _PROBE_PASSES - 1 else 0

    def record(self, drafted: int, accepted: int) -> None:
        """Take a pass into account."""
        if drafted:
            gain = accepted - pass_cost(drafted)
            self._gain += _WEIGHT * (gain - self._gain)
            self._draftless = 0
        elif self.limit(MAX_DRAFT):
            self._draftless += 1
        self._passes += 1


def pass_cost(drafted: int) -> float:
    """Return the extra time of a pass over so many drafted tokens, as a share of a one-token pass."""
    return next(cost for most, cost in _COST if drafted <= most)
