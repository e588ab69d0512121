"""Submits requests to one vLLM engine and returns the tokens of each.

Any caller that waits for a token steps the engine; tokens of other requests wait in their queues.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from unfuse.engines.vllm.finite_watch import FiniteWatch
from unfuse.engines.vllm.logits_recorder import KEY, LogitsRecorder, RecorderRegistry
from unfuse.engines.vllm.prefix_hash import PrefixHasher, PrefixKey
from unfuse.finite import INVALID_TOKEN
from unfuse.stages import Sampling, StopReason

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 2.0
"""Range of temperatures that vLLM uses unchanged, besides 0."""
_STOP_REASONS: Final[dict[str, StopReason]] = {"stop": "eos", "length": "length"}


@dataclass(frozen=True, slots=True)
class VllmToken:
    """One new token of one request."""

    token_id: int
    """``INVALID_TOKEN`` if its logits were not finite; the request must be aborted then."""
    finished: StopReason | None
    """Reason why this is the last token; None for others."""
    cached_tokens: int
    """Positions of the prompt with cached keys and values."""


class VllmClient:
    """The requests of one ``LLMEngine``."""

    def __init__(self, engine: Any, recorders: RecorderRegistry, end_ids: Sequence[int]):
        self._engine = engine
        self._recorders = recorders
        self._end_ids = list(end_ids)
        self._queues: dict[str, deque[VllmToken]] = {}
        self._num_tokens: dict[str, int] = {}
        """New tokens of each request so far."""
        self._names = map(str, itertools.count())
        self._hasher = PrefixHasher(engine)

    @property
    def max_positions(self) -> int:
        """Positions that a prompt and its answer may have together."""
        return int(self._engine.model_config.max_model_len)

    def submit(
        self,
        embeds: torch.Tensor,
        sampling: Sampling,
        max_new_tokens: int,
        *,
        prefix: PrefixKey,
        recorder: LogitsRecorder | None = None,
    ) -> str:
        """Submit a request.

        Args:
            embeds: ``[L, H]`` on the host; must not change before the request is finished.
            sampling: how tokens are chosen.
            max_new_tokens: at most.
            prefix: identifies the prompt in the prefix cache.
            recorder: records the logits, and forces or masks tokens; the answer then has exactly ``max_new_tokens``.

        Returns:
            The request's name.
        """
        from vllm import SamplingParams
        from vllm.inputs import embeds_input
        from vllm.sampling_params import RequestOutputKind

        name = next(self._names)
        self._recorders[name] = FiniteWatch() if recorder is None else recorder
        chosen: dict[str, Any] = {"temperature": 0.0}
        if sampling.temperature:
            chosen = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
        params = SamplingParams(
            max_tokens=max_new_tokens,
            # vLLM's ignore_eos lets end tokens be chosen; min_tokens masks them.
            min_tokens=max_new_tokens if sampling.ignore_eos and recorder is None else 0,
            stop_token_ids=self._end_ids if recorder is None else [],
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args={KEY: name},
            **chosen,
        )
        with self._hasher.using(prefix):
            self._engine.add_request(name, embeds_input(prompt_embeds=embeds, cache_salt=prefix.salt), params)
        self._queues[name] = deque()
        self._num_tokens[name] = 0
        return name

    def step(self) -> None:
        """Run one step of vLLM; it may return tokens of an earlier step, or no tokens."""
        for output in self._engine.step():
            if (queue := self._queues.get(output.request_id)) is None:
                continue  # the request was aborted meanwhile
            (answer,) = output.outputs
            finished = _STOP_REASONS[answer.finish_reason] if output.finished else None
            last = len(answer.token_ids) - 1
            name = output.request_id
            for index, token in enumerate(answer.token_ids):
                cached = output.num_cached_tokens or 0
                if not self._recorders.finite(name, self._num_tokens[name]):
                    token = INVALID_TOKEN
                self._num_tokens[name] += 1
                queue.append(VllmToken(int(token), finished if index == last else None, cached))

    def take(self, name: str) -> list[VllmToken]:
        """Return the tokens of a request since the last call."""
        queue = self._queues[name]
        tokens = list(queue)
        queue.clear()
        if tokens and tokens[-1].finished:
            self._forget(name)
        return tokens

    def follow(self, name: str) -> Iterator[VllmToken]:
        """Step until a request is finished, and yield its tokens; closing the iterator aborts the request."""
        try:
            while name in self._queues:
                if not (tokens := self.take(name)):
                    assert self._engine.has_unfinished_requests()
                    self.step()
                yield from tokens
        finally:
            self.abort(name)

    def abort(self, name: str) -> None:
        """Abort a request, if it is not finished."""
        if name in self._queues:
            self._forget(name)
            self._engine.abort_request([name])

    def _forget(self, name: str) -> None:
        del self._queues[name], self._num_tokens[name]
        self._recorders.discard(name)
