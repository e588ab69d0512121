"""Drafts that count their passes, and pause while they do not pay."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unfuse.speculation.drafter import SpeculationCounts
from unfuse.speculation.pay import PayEstimate


class CountedDrafts(ABC):
    """Drafts of one answer. Implements ``Drafts``."""

    def __init__(self, most: int, pay: PayEstimate | None):
        """Begin an answer.

        Args:
            most: most tokens of a draft.
            pay: of all answers of the run; None drafts as many tokens as there are.
        """
        self.counts = SpeculationCounts()
        self._most, self._pay = most, pay

    @property
    def limit(self) -> int:
        """Most tokens of the next draft."""
        return self._most if self._pay is None else self._pay.limit(self._most)

    @property
    def pauses(self) -> bool:
        """See ``Drafts.pauses``."""
        return self.limit == 0

    def draft(self, new_tokens: Sequence[int]) -> NDArray[np.int64]:
        """See ``Drafts.draft``."""
        start = time.perf_counter()
        following = self.following(np.asarray(new_tokens, np.int64))
        self.counts.drafting_s += time.perf_counter() - start
        return following

    def record(self, drafted: int, accepted: int) -> None:
        """See ``Drafts.record``."""
        self.counts.drafted.append(drafted)
        self.counts.accepted.append(accepted)
        if self._pay is not None:
            self._pay.record(drafted, accepted)

    @abstractmethod
    def following(self, new_tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return at most ``limit`` tokens that are expected after the new ones."""
