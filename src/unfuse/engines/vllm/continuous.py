"""Continuous batching by vLLM's scheduler: requests wait here until their prompts are on the host and there is room."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from unfuse.engines.batching import Request, TokenOutput
from unfuse.engines.sequential import SequentialBatch
from unfuse.engines.vllm.prefixes import Prefix
from unfuse.engines.vllm.requests import Landing, Requests
from unfuse.stages import Prompt


@dataclass(slots=True)
class _Running:
    request: Request
    prompt_tokens: int
    written: int = 0


class VllmBatch:
    """See ``ContinuousBatch``. Several of one engine may be under way: each step is every one's."""

    def __init__(
        self,
        requests: Requests,
        *,
        capacity: int,
        interleave: bool,
        landing: Callable[[Request], Landing],
        prefix: Callable[[Prompt, bool], Prefix],
        others: SequentialBatch,
        refuses: Callable[[Request], bool],
    ):
        """For ``VllmEngine.continuous``.

        Args:
            requests: what vLLM is asked.
            capacity: requests at the same time.
            interleave: let one join a step at most.
            landing: starts a prompt's way to the host.
            prefix: of a prompt with or without ``reuse``.
            others: takes the requests that vLLM cannot.
            refuses: whether it is one of those.
        """
        self.capacity = capacity
        self._interleave = interleave
        self._requests, self._landing, self._prefix = requests, landing, prefix
        self._others, self._refuses = others, refuses
        self._waiting: deque[tuple[Request, Landing]] = deque()
        self._running: dict[str, _Running] = {}
        """By vLLM's names."""
        self._busy = {"prefill": 0.0, "decode": 0.0}

    @property
    def unfinished(self) -> int:
        """See ``ContinuousBatch.unfinished``."""
        return len(self._waiting) + len(self._running) + self._others.unfinished

    @property
    def busy_s(self) -> Mapping[str, float]:
        """See ``ContinuousBatch.busy_s``."""
        return {stage: seconds + self._others.busy_s[stage] for stage, seconds in self._busy.items()}

    def prepare(self) -> None:
        """Nothing: a vLLM does so when it is made."""

    def add(self, requests: Sequence[Request]) -> None:
        """See ``ContinuousBatch.add``."""
        for request in requests:
            if self._refuses(request):
                self._others.add([request])
            else:
                self._waiting.append((request, self._landing(request)))

    def step(self) -> list[TokenOutput]:
        """See ``ContinuousBatch.step``."""
        others = self._others.step()
        self._admit()
        written = self._taken(0.0)  # said while somebody else stepped
        while self._running and not written:
            begun = time.perf_counter()
            self._requests.step()
            written = self._taken(time.perf_counter() - begun)
        return others + written

    def abort(self, request_id: str) -> None:
        """See ``ContinuousBatch.abort``."""
        self._others.abort(request_id)
        self._waiting = deque(entry for entry in self._waiting if entry[0].request_id != request_id)
        for name, running in list(self._running.items()):
            if running.request.request_id == request_id:
                self._requests.drop(name)
                del self._running[name]

    def close(self) -> None:
        """See ``ContinuousBatch.close``."""
        self._others.close()
        self._waiting.clear()
        for name in self._running:
            self._requests.drop(name)
        self._running.clear()

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self.capacity:
            request, prompt = self._waiting[0]
            if self._running and not prompt.landed:
                return  # vLLM has work until it is there
            self._waiting.popleft()
            length = prompt.length
            most = min(request.max_new_tokens, self._requests.longest - length)
            prefix = self._prefix(request.prompt, request.reuse)
            name = self._requests.submit(prompt.prompt(), request.sampling, most, prefix=prefix)
            self._running[name] = _Running(request, length)
            if self._interleave:
                return

    def _taken(self, seconds: float) -> list[TokenOutput]:
        """What a step that took so long said to these requests."""
        found: list[TokenOutput] = []
        prompts = tokens = 0
        for name, running in list(self._running.items()):
            for said in self._requests.take(name):
                if running.written == 0:
                    prompts += running.prompt_tokens - said.cached
                else:
                    tokens += 1
                running.written += 1
                found.append(
                    TokenOutput(
                        request_id=running.request.request_id,
                        token_id=said.token_id,
                        finished=said.finished,
                        reused_prefix_tokens=said.cached if running.request.reuse else 0,
                    )
                )
                if said.finished:
                    del self._running[name]
        # A step that said nothing only filled the queue of an engine that stood still: that is for a prompt.
        share = prompts / (prompts + tokens) if found else 1.0
        self._busy["prefill"] += share * seconds
        self._busy["decode"] += (1 - share) * seconds
        return found
