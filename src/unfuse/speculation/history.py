"""Drafts from earlier answers of a run: the longest suffix of the answer that they contain, and how they went on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from unfuse.speculation.counted import CountedDrafts
from unfuse.speculation.drafter import MAX_DRAFT
from unfuse.speculation.pay import PayEstimate
from unfuse.speculation.suffix_index import Match, SuffixIndex, compile_functions

MAX_TOKENS: Final = 1_000_000
"""Tokens that a history holds: about 100 MB."""


class History:
    """Answers so far, in bounded memory. Not for several threads."""

    name = "history"

    def __init__(
        self, vocabulary: int, end_ids: Iterable[int], *, draft_tokens: int | None = None, max_tokens: int = MAX_TOKENS
    ):
        """Begin without answers.

        Args:
            vocabulary: token ids are below it.
            end_ids: tokens that end an answer; a draft ends with one.
            draft_tokens: tokens of every draft at most; None drafts as many as pay.
            max_tokens: tokens in the history; the older half is forgotten when there are more.
        """
        compile_functions()
        self.vocabulary = self._start = vocabulary
        """Put before each answer, so that answers with a common beginning are drafted from their first token on."""
        self._index = SuffixIndex(vocabulary + 1)
        self._end_ids = np.array(sorted(end_ids), np.int64)
        self._limit = MAX_DRAFT if draft_tokens is None else min(draft_tokens, MAX_DRAFT)
        self._pay = PayEstimate() if draft_tokens is None else None
        self._max_tokens = max_tokens
        self._answers: deque[NDArray[np.int64]] = deque()
        self._num_tokens = 0

    @property
    def answers(self) -> Sequence[NDArray[np.int64]]:
        """Token ids of the answers in the index, the oldest first."""
        return self._answers

    def __len__(self) -> int:
        return len(self._answers)

    def begin(self, prompt_ids: Sequence[int]) -> HistoryDrafts:
        """See ``Drafter.begin``; the prompt does not matter."""
        return HistoryDrafts(self)

    def learn(self, token_ids: Sequence[int]) -> None:
        """See ``Drafter.learn``."""
        answer = np.array([self._start, *token_ids], np.int64)
        self._answers.append(answer[1:])
        self._num_tokens += len(answer)
        if self._num_tokens <= self._max_tokens:
            self._index.add(answer)
            return
        while self._num_tokens > self._max_tokens // 2:
            self._num_tokens -= len(self._answers.popleft()) + 1
        self._index.clear()
        for each in self._answers:
            self._index.add(np.concatenate([[self._start], each]))

    def close(self) -> None:
        """See ``Drafter.close``."""


class HistoryDrafts(CountedDrafts):
    """Drafts of one answer: from the history, or from the answer itself if more of it repeats."""

    def __init__(self, history: History):
        super().__init__(history._limit, history._pay)
        self._history = history
        self._restart()
        self._own = SuffixIndex(history._start + 1)
        self._own_state = 0

    def following(self, new_tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """See ``CountedDrafts.following``."""
        index, end_ids = self._history._index, self._history._end_ids
        if self._clears != index.clears:
            self._restart()
        index.advance(self._match, new_tokens)
        self._own_state = self._own.add(new_tokens, self._own_state)
        own = self._own.earlier(self._own_state)
        if own.length > self._match.length:
            return self._own.draft(own, self.limit, end_ids).token_ids
        return index.draft(self._match, self.limit, end_ids).token_ids

    def _restart(self) -> None:
        """Match the beginning of an answer; also in the middle of one whose match the index has removed."""
        index = self._history._index
        self._match, self._clears = Match(), index.clears
        index.advance(self._match, np.array([self._history._start], np.int64))
