"""Continuous batching by vLLM's scheduler.

Requests wait here until their prompts are on the host and fewer than ``capacity`` requests run.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from unfuse.engines.batching import Request, TokenOutput, failed, input_error
from unfuse.engines.sequential import SequentialBatch
from unfuse.engines.vllm.client import VllmClient, VllmToken
from unfuse.engines.vllm.host_prompt import PreparedPrompt
from unfuse.errors import NonFiniteError
from unfuse.finite import INVALID_TOKEN


@dataclass(slots=True)
class _Running:
    request: Request
    prompt_tokens: int
    received: int = 0
    """Tokens returned so far."""


class VllmBatch:
    """Implements ``ContinuousBatch``. Several batches may share an engine: a step advances the requests of all."""

    def __init__(
        self,
        client: VllmClient,
        prepare: Callable[[Request], PreparedPrompt | None],
        fallback: SequentialBatch,
        *,
        capacity: int,
        interleave: bool,
    ):
        """Create an empty batch for ``VllmEngine.continuous``.

        Args:
            client: submits requests to vLLM.
            prepare: starts a prompt's copy to the host; returns None for a request that vLLM does not support.
            fallback: runs the requests that vLLM does not support.
            capacity: requests that run at the same time.
            interleave: admit at most one request before each step.
        """
        self.capacity = capacity
        self._interleave = interleave
        self._client, self._prepare = client, prepare
        self._fallback = fallback
        self._waiting: deque[tuple[Request, PreparedPrompt]] = deque()
        self._running: dict[str, _Running] = {}
        """By vLLM's request name."""
        self._busy = {"prefill": 0.0, "decode": 0.0}

    @property
    def unfinished(self) -> int:
        """See ``ContinuousBatch.unfinished``."""
        return len(self._waiting) + len(self._running) + self._fallback.unfinished

    @property
    def busy_s(self) -> Mapping[str, float]:
        """See ``ContinuousBatch.busy_s``."""
        return {stage: seconds + self._fallback.busy_s[stage] for stage, seconds in self._busy.items()}

    def prepare(self) -> None:
        """Do nothing: vLLM compiles and captures when it is built."""

    def add(self, requests: Sequence[Request]) -> None:
        """See ``ContinuousBatch.add``."""
        for request in requests:
            if (prompt := self._prepare(request)) is None:
                self._fallback.add([request])
            else:
                self._waiting.append((request, prompt))

    def step(self) -> list[TokenOutput]:
        """See ``ContinuousBatch.step``."""
        fallback_outputs = self._fallback.step()
        self._admit()
        outputs = self._outputs(0.0)  # of steps that other batches ran
        while self._running and not outputs:
            start = time.perf_counter()
            self._client.step()
            outputs = self._outputs(time.perf_counter() - start)
        return fallback_outputs + outputs

    def abort(self, request_id: str) -> None:
        """See ``ContinuousBatch.abort``."""
        self._fallback.abort(request_id)
        self._waiting = deque(entry for entry in self._waiting if entry[0].request_id != request_id)
        for name, running in list(self._running.items()):
            if running.request.request_id == request_id:
                self._client.abort(name)
                del self._running[name]

    def close(self) -> None:
        """See ``ContinuousBatch.close``."""
        self._fallback.close()
        self._waiting.clear()
        for name in self._running:
            self._client.abort(name)
        self._running.clear()

    def _admit(self) -> None:
        """Submit waiting requests, in order, as long as there is room."""
        while self._waiting and len(self._running) < self.capacity:
            request, prompt = self._waiting[0]
            if self._running and not prompt.host.ready:
                return  # vLLM has other work until the copy is complete
            self._waiting.popleft()
            length = prompt.host.length
            max_new_tokens = min(request.max_new_tokens, self._client.max_positions - length)
            name = self._client.submit(prompt.host.embeds(), request.sampling, max_new_tokens, prefix=prompt.prefix)
            self._running[name] = _Running(request, length)
            if self._interleave:
                return

    def _outputs(self, seconds: float) -> list[TokenOutput]:
        """Return the new tokens, and divide the seconds of the step between prefill and decode."""
        outputs: list[TokenOutput] = []
        prefill_rows = decode_rows = 0
        for name, running in list(self._running.items()):
            for token in self._client.take(name):
                if running.received == 0:
                    prefill_rows += running.prompt_tokens - token.cached_tokens
                else:
                    decode_rows += 1
                if (fault := _fault(running, token)) is not None:
                    self._client.abort(name)
                    del self._running[name]
                    outputs.append(failed(running.request, fault))
                    break
                running.received += 1
                outputs.append(
                    TokenOutput(
                        request_id=running.request.request_id,
                        token_id=token.token_id,
                        finished=token.finished,
                        reused_prefix_tokens=token.cached_tokens if running.request.reuse else 0,
                    )
                )
                if token.finished:
                    del self._running[name]
        # A step without tokens starts the pipeline of an idle engine: it computes a prompt.
        prefill_share = prefill_rows / (prefill_rows + decode_rows) if outputs else 1.0
        self._busy["prefill"] += prefill_share * seconds
        self._busy["decode"] += (1 - prefill_share) * seconds
        return outputs


def _fault(running: _Running, token: VllmToken) -> NonFiniteError | None:
    """Return the reason why a request has failed at a token, or None."""
    if running.received == 0 and (error := input_error(running.request)) is not None:
        return error
    stage = "decode" if running.received else "prefill"
    return NonFiniteError(stage, "logits", found="NaN or infinity") if token.token_id == INVALID_TOKEN else None
