"""Sequential (round-robin) batch: continuous batching for any engine, without a speed-up."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from unfuse.engines.base import Engine
from unfuse.engines.batching import Request, TokenOutput, failed, input_error
from unfuse.errors import NonFiniteError
from unfuse.stages import StopReason

_T = TypeVar("_T")
DEFAULT_CAPACITY: Final = 8
"""More requests gain no speed, and each holds a KV cache."""


class SequentialBatch:
    """Decodes one token of each request in turn; each request has its own KV cache.

    It is as fast as one request after the other, and the reference for engines with a faster batch.
    """

    def __init__(self, engine: Engine, capacity: int | None = None, *, interleave: bool = False):
        self._engine = engine
        self.capacity = capacity or DEFAULT_CAPACITY
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
        """Do nothing: nothing is compiled."""

    def add(self, requests: Sequence[Request]) -> None:
        """See ``ContinuousBatch.add``."""
        self._waiting.extend(requests)

    def step(self) -> list[TokenOutput]:
        """See ``ContinuousBatch.step``."""
        failures: list[TokenOutput] = []
        while self._waiting and len(self._running) < self.capacity:
            request = self._waiting.popleft()
            if (error := self._join(request)) is not None:
                failures.append(failed(request, error))
            if self._interleave:
                break
        return failures + [self._next(*entry) for entry in list(self._running.values())]

    def abort(self, request_id: str) -> None:
        """See ``ContinuousBatch.abort``."""
        self._waiting = deque(request for request in self._waiting if request.request_id != request_id)
        if entry := self._running.pop(request_id, None):
            _close(entry[1])
            del self._counts[request_id]

    def close(self) -> None:
        """See ``ContinuousBatch.close``."""
        self._waiting.clear()
        for _, tokens, _ in self._running.values():
            _close(tokens)
        self._running.clear()
        self._counts.clear()

    def _join(self, request: Request) -> NonFiniteError | None:
        """Prefill a request; return the reason why it has failed, or None."""
        try:
            prefilled = self._timed(
                "prefill", lambda: self._engine.prefill(request.prompt, request.sampling, reuse=request.reuse)
            )
        except NonFiniteError as error:
            return input_error(request) or error
        if (fault := input_error(request)) is not None:
            return fault
        tokens = self._engine.decode(prefilled, request.max_new_tokens)
        self._running[request.request_id] = request, tokens, prefilled.reused_prefix_tokens
        self._counts[request.request_id] = 0
        return None

    def _next(self, request: Request, tokens: Iterator[int], reused: int) -> TokenOutput:
        name = request.request_id
        try:
            token = self._timed("decode", lambda: next(tokens))
        except NonFiniteError as error:
            self.abort(name)
            return failed(request, error)
        self._counts[name] += 1
        finished: StopReason | None = None
        if self._engine.is_end(token):
            finished = "eos"
        elif self._counts[name] == request.max_new_tokens:
            finished = "length"
        if finished is not None:
            _close(tokens)
            del self._running[name], self._counts[name]
        return TokenOutput(request_id=name, token_id=token, finished=finished, reused_prefix_tokens=reused)

    def _timed(self, stage: str, work: Callable[[], _T]) -> _T:
        start = time.perf_counter()
        try:
            return work()
        finally:
            self.busy_s[stage] += time.perf_counter() - start


def _close(tokens: Iterator[int]) -> None:
    """Free the memory of a generator."""
    close = getattr(tokens, "close", None)
    if close is not None:
        close()
