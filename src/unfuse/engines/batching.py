"""Continuous batching: answers that are written together, each joining when it comes and leaving when it ends.

Orca (Yu et al., OSDI 2022) calls it iteration-level scheduling: who is in the batch is decided at every step.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from unfuse.stages import Prompt, Sampling, StopReason

if TYPE_CHECKING:
    from unfuse.engines.base import Engine

_T = TypeVar("_T")
TURNS: Final = 8
"""Requests that take turns where nobody asks for a number: more gain nothing, and each holds a cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A prompt, and how its answer is to be written."""

    request_id: str
    """Unique among those that are not finished."""
    prompt: Prompt
    max_new_tokens: int
    sampling: Sampling
    reuse: bool = False
    """Start from keys and values of an earlier request as far as tokens and features agree."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """One new token of one request."""

    request_id: str
    token_id: int
    finished: StopReason | None
    """Why this was its last; None while it goes on."""
    reused_prefix_tokens: int
    """Of its prompt; the same with every token."""


class ContinuousBatch(Protocol):
    """Answers under way on one engine. Not for several threads at once."""

    @property
    def capacity(self) -> int:
        """Requests that can be written at the same time."""

    @property
    def unfinished(self) -> int:
        """Requests that were added and have not ended, those that still wait among them."""

    @property
    def busy_s(self) -> Mapping[str, float]:
        """Seconds spent in ``prefill`` and in ``decode`` so far."""

    def prepare(self) -> None:
        """Does now what first requests would wait for: compiling, tuning, capturing. Nothing needs it."""

    def add(self, requests: Sequence[Request]) -> None:
        """Puts requests in the queue; those of one call may be prefilled together.

        Raises:
            FeaturesError: as ``Engine.prefill``.
        """

    def step(self) -> list[Written]:
        """Lets requests join as far as there is room, writes one more token of each, and says what was written.

        What it says may lag behind what was started by a step; with nothing unfinished it is empty.
        """

    def abort(self, request_id: str) -> None:
        """Forgets a request; one that is not there is no error. Nothing more is said of it."""

    def close(self) -> None:
        """Forgets all requests and frees what they held; a second call does nothing."""


class TurnByTurn:
    """Each request a prompt and an iterator of its own, a token each in turn: no faster than one by one.

    It gives any engine continuous batching, and is the reference for those that have a faster one.
    """

    def __init__(self, engine: Engine, capacity: int | None = None, *, interleave: bool = False):
        self._engine = engine
        self.capacity = capacity or TURNS
        self._interleave = interleave
        self.busy_s: dict[str, float] = {"prefill": 0.0, "decode": 0.0}
        self._waiting: deque[Request] = deque()
        self._running: dict[str, tuple[Request, Iterator[int], int]] = {}
        self._counts: dict[str, int] = {}

    @property
    def unfinished(self) -> int:
        """See ``ContinuousBatch.unfinished``."""
        return len(self._waiting) + len(self._running)

    def prepare(self) -> None:
        """Nothing is compiled."""

    def add(self, requests: Sequence[Request]) -> None:
        """See ``ContinuousBatch.add``."""
        self._waiting.extend(requests)

    def step(self) -> list[Written]:
        """See ``ContinuousBatch.step``."""
        while self._waiting and len(self._running) < self.capacity:
            self._join(self._waiting.popleft())
            if self._interleave:
                break
        return [self._next(*entry) for entry in list(self._running.values())]

    def abort(self, request_id: str) -> None:
        """See ``ContinuousBatch.abort``."""
        self._waiting = deque(request for request in self._waiting if request.request_id != request_id)
        if entry := self._running.pop(request_id, None):
            _closed(entry[1])
            del self._counts[request_id]

    def close(self) -> None:
        """See ``ContinuousBatch.close``."""
        self._waiting.clear()
        for _, tokens, _ in self._running.values():
            _closed(tokens)
        self._running.clear()
        self._counts.clear()

    def _join(self, request: Request) -> None:
        prefilled = self._timed(
            "prefill", lambda: self._engine.prefill(request.prompt, request.sampling, reuse=request.reuse)
        )
        tokens = self._engine.decode(prefilled, request.max_new_tokens)
        self._running[request.request_id] = request, tokens, prefilled.reused_prefix_tokens
        self._counts[request.request_id] = 0

    def _next(self, request: Request, tokens: Iterator[int], reused: int) -> Written:
        name = request.request_id
        token = self._timed("decode", lambda: next(tokens))
        self._counts[name] += 1
        finished: StopReason | None = None
        if self._engine.is_end(token):
            finished = "eos"
        elif self._counts[name] == request.max_new_tokens:
            finished = "length"
        if finished is not None:
            _closed(tokens)
            del self._running[name], self._counts[name]
        return Written(request_id=name, token_id=token, finished=finished, reused_prefix_tokens=reused)

    def _timed(self, stage: str, work: Callable[[], _T]) -> _T:
        begun = time.perf_counter()
        try:
            return work()
        finally:
            self.busy_s[stage] += time.perf_counter() - begun


def _closed(tokens: Iterator[int]) -> None:
    """Lets go of what a generator holds."""
    close = getattr(tokens, "close", None)
    if close is not None:
        close()
