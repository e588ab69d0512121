"""Continuous batching for any engine, without a speed-up: round robin over the requests."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from unfuse.engines.base import Engine
from unfuse.engines.batching import Request, TokenOutput
from unfuse.stages import StopReason

_T = TypeVar("_T")
TURNS: Final = 8
"""Default number of requests that take turns. More gain nothing, and each holds a KV cache."""


class SequentialBatch:
    """Requests take turns: each has its own KV cache, and one token of each is decoded at a time.

    Any engine gets continuous batching by it, no faster than one request after the other. It is the reference for
    engines that have a faster one.
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

    def step(self) -> list[TokenOutput]:
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

    def _next(self, request: Request, tokens: Iterator[int], reused: int) -> TokenOutput:
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
        return TokenOutput(request_id=name, token_id=token, finished=finished, reused_prefix_tokens=reused)

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
