"""Drafts from the prompt and the answer itself (prompt lookup decoding: Saxena, 2023)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from unfuse.speculation.counted import CountedDrafts
from unfuse.speculation.drafter import MAX_DRAFT
from unfuse.speculation.pay import PayEstimate
from unfuse.speculation.suffix_index import SuffixIndex, compile_functions


class NGram:
    """Looks up the end of an answer in its prompt's text and in the answer. Nothing passes from answer to answer."""

    name = "ngram"

    def __init__(self, vocabulary: int, end_ids: Iterable[int], *, draft_tokens: int | None = None):
        """Prepare.

        Args:
            vocabulary: token ids are below it.
            end_ids: tokens that end an answer; a draft ends with one.
            draft_tokens: tokens of every draft at most; None drafts as many as pay.
        """
        compile_functions()
        self.vocabulary = vocabulary
        self.end_ids = np.array(sorted(end_ids), np.int64)
        self.limit = MAX_DRAFT if draft_tokens is None else min(draft_tokens, MAX_DRAFT)
        self.pay = PayEstimate() if draft_tokens is None else None

    def begin(self, prompt_ids: Sequence[int]) -> NGramDrafts:
        """See ``Drafter.begin``."""
        return NGramDrafts(self, prompt_ids)

    def learn(self, token_ids: Sequence[int]) -> None:
        """See ``Drafter.learn``: an answer does not help the next one."""

    def close(self) -> None:
        """See ``Drafter.close``."""


class NGramDrafts(CountedDrafts):
    """Drafts of one answer."""

    def __init__(self, drafter: NGram, prompt_ids: Sequence[int]):
        super().__init__(drafter.limit, drafter.pay)
        self._end_ids = drafter.end_ids
        self._index = SuffixIndex(drafter.vocabulary)
        ids = np.asarray(prompt_ids, np.int64)
        # Placeholders of features are no tokens.
        self._state = self._index.add(ids[(ids >= 0) & (ids < drafter.vocabulary)])

    def following(self, new_tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """See ``CountedDrafts.following``."""
        self._state = self._index.add(new_tokens, self._state)
        return self._index.draft(self._index.earlier(self._state), self.limit, self._end_ids).token_ids
