"""Requests under way in one vLLM engine: whoever waits for a token steps it, and each finds what concerns him.

Prompts go to vLLM by way of the host, as it wants them.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from unfuse.engines.vllm.prefixes import BlockHashes, Prefix
from unfuse.engines.vllm.watched import KEY, Rows, Watched
from unfuse.stages import Sampling, StopReason

COLDEST, HOTTEST = 0.01, 2.0
"""Temperatures that vLLM takes as they are, besides 0."""
_REASONS: Final[dict[str, StopReason]] = {"stop": "eos", "length": "length"}


@dataclass(frozen=True, slots=True)
class Said:
    """One new token of one request."""

    token_id: int
    finished: StopReason | None
    cached: int
    """Positions of the prompt whose keys and values were there already."""


class Landing:
    """A prompt's rows on their way to the host, with a row more for a token that follows."""

    def __init__(self, embeds: torch.Tensor, stream: torch.cuda.Stream | None):
        """Starts the copy.

        Args:
            embeds: ``[L, H]``, complete on the current stream.
            stream: to copy on, so that nobody waits for what comes after; None where it is on the host.
        """
        length, width = embeds.shape
        self.length = length
        self._rows = torch.empty(length + 1, width, dtype=embeds.dtype, pin_memory=stream is not None)
        self._there: torch.cuda.Event | None = None
        if stream is None:
            self._rows[:length].copy_(embeds)
            return
        stream.wait_stream(torch.cuda.current_stream(embeds.device))
        with torch.cuda.stream(stream):
            self._rows[:length].copy_(embeds, non_blocking=True)
            embeds.record_stream(stream)
            self._there = torch.cuda.Event()
            self._there.record(stream)

    @property
    def landed(self) -> bool:
        """Whether ``prompt`` would wait."""
        return self._there is None or self._there.query()

    def prompt(self) -> torch.Tensor:
        """``[L, H]`` on the host."""
        if self._there is not None:
            self._there.synchronize()
        return self._rows[: self.length]

    def followed_by(self, row: torch.Tensor) -> torch.Tensor:
        """``[L + 1, H]``: the prompt and one token more, ``[1, H]``; in the same memory whatever the token."""
        self.prompt()
        self._rows[self.length :].copy_(row)
        return self._rows

    def copy(self) -> Landing:
        """The same rows in other memory."""
        other = Landing.__new__(Landing)
        other.length, other._there = self.length, None
        self.prompt()
        other._rows = self._rows.clone()
        return other


class Requests:
    """What is asked of one ``LLMEngine``, and what it says."""

    def __init__(self, engine: Any, watched: Watched, end_ids: Sequence[int]):
        self._engine = engine
        self._watched = watched
        self._end_ids = list(end_ids)
        self._said: dict[str, deque[Said]] = {}
        self._names = map(str, itertools.count())
        self._hashes = BlockHashes(engine)

    @property
    def longest(self) -> int:
        """Positions that a prompt and its answer may have together."""
        return int(self._engine.model_config.max_model_len)

    def submit(
        self,
        embeds: torch.Tensor,
        sampling: Sampling,
        max_new_tokens: int,
        *,
        prefix: Prefix,
        rows: Rows | None = None,
    ) -> str:
        """Asks for an answer.

        Args:
            embeds: ``[L, H]`` on the host; not to be changed until the answer is finished.
            sampling: how tokens are chosen.
            max_new_tokens: at most.
            prefix: what may be taken over from whom.
            rows: sees the logits and forces or bars tokens; the answer then has ``max_new_tokens``, whatever they are.

        Returns:
            The request's name.
        """
        from vllm import SamplingParams
        from vllm.inputs import embeds_input
        from vllm.sampling_params import RequestOutputKind

        name = next(self._names)
        if rows is not None:
            self._watched[name] = rows
        chosen: dict[str, Any] = {"temperature": 0.0}
        if sampling.temperature:
            chosen = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
        params = SamplingParams(
            max_tokens=max_new_tokens,
            # vLLM's own word for it only leaves end tokens without effect.
            min_tokens=max_new_tokens if sampling.ignore_eos and rows is None else 0,
            stop_token_ids=self._end_ids if rows is None else [],
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args={KEY: name} if rows is not None else None,
            **chosen,
        )
        with self._hashes.given(prefix):
            self._engine.add_request(name, embeds_input(prompt_embeds=embeds, cache_salt=prefix.salt), params)
        self._said[name] = deque()
        return name

    def step(self) -> None:
        """Lets vLLM compute; what it says is of an earlier step, or nothing."""
        for output in self._engine.step():
            if (said := self._said.get(output.request_id)) is None:
                continue  # dropped meanwhile
            (answer,) = output.outputs
            finished = _REASONS[answer.finish_reason] if output.finished else None
            last = len(answer.token_ids) - 1
            for at, token in enumerate(answer.token_ids):
                said.append(Said(int(token), finished if at == last else None, output.num_cached_tokens or 0))

    def take(self, name: str) -> list[Said]:
        """What was said to a request since this was last asked."""
        said = self._said[name]
        taken = list(said)
        said.clear()
        if taken and taken[-1].finished:
            self._forget(name)
        return taken

    def follow(self, name: str) -> Iterator[Said]:
        """Steps until a request is finished; one that is left in the middle is dropped."""
        try:
            while name in self._said:
                if not (taken := self.take(name)):
                    assert self._engine.has_unfinished_requests()
                    self.step()
                yield from taken
        finally:
            self.drop(name)

    def drop(self, name: str) -> None:
        """Forgets a request; one that is finished is no error."""
        if name in self._said:
            self._forget(name)
            self._engine.abort_request([name])

    def _forget(self, name: str) -> None:
        del self._said[name]
        self._watched.pop(name)
