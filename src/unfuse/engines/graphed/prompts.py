"""Passes of the network over prompts: the rows that are not cached yet, of one prompt or of several together."""

from __future__ import annotations

import functools
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from unfuse.engines.graphed.caches import Sequence
from unfuse.engines.graphed.capture import Captured
from unfuse.engines.graphed.kernels.few_rows import MOST_ROWS
from unfuse.engines.graphed.network import Network, Tail, tail_bucket
from unfuse.stages import Prompt

_LONGEST_CAPTURED: Final = 2048
"""Rows of a prompt; beyond, a launch is short beside what it launches."""
_BEGINS: Final = 2
"""The line that says how much comes before a prompt's rows."""
_FIRST: Final = 4
"""The line that says where they are among those of others."""
SEVERAL: Final = 16
"""Prompts of one pass at most."""
PASS_ROWS: Final = 2556
"""Rows of several prompts together: more are no faster a row, and those who wait for a token wait longer."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A prompt as rows of the network, and the cache they go to."""

    embeds: torch.Tensor
    """``[L, H]``, without what is cached."""
    positions: torch.Tensor
    """int32 ``[A, L]``"""
    sequence: Sequence
    """Holds what comes before these rows, or the end of it."""
    ahead: Sequence | None = None
    """Holds what comes before that."""
    shared: int = 0
    """Positions of it that do."""


class Text:
    """A pass over up to so many tokens after what is cached, which all come in one copy."""

    def __init__(self, network: Network, rows: int, pool: Any):
        network.tune_tail(rows, 1)
        tail, device = network.tail(rows), network.llama.device
        self._asked = torch.cat([tail.numbers[:, 0], tail.numbers.new_zeros(rows)])
        numbers, ids = self._asked.split([len(tail.numbers), rows])
        tail = replace(tail, numbers=numbers[:, None])
        counted = torch.arange(rows, device=device).expand(network.axes, -1)

        def work() -> None:
            torch.index_select(network.llama.embedding, 0, ids, out=tail.embeds)
            torch.add(counted, numbers[_BEGINS], out=tail.positions)
            network.prompt(tail)

        self._run = Captured(work, device, pool)
        self._staged = torch.zeros(self._asked.shape, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._values = self._staged.numpy()
        self._copied = torch.cuda.Event() if device.type == "cuda" else None
        self.work = tail.work
        self.logits = tail.logits[0]

    def __call__(self, asked: list[int]) -> None:
        """Launches it.

        Args:
            asked: the eight numbers of the sequence, and the tokens.
        """
        if self._copied is not None:
            self._copied.synchronize()
        self._values[: len(asked)] = asked
        self._asked.copy_(self._staged, non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        self._run()


class Prompts:
    """Runs passes; the host is not made to wait for any."""

    def __init__(self, network: Network, pool: Any):
        self._network, self._pool = network, pool
        self._tails: dict[tuple[int, int, bool], tuple[Tail, Callable[[], None]]] = {}
        self._texts: dict[int, Text] = {}
        self._memory: Tail | None = None
        """For several prompts together, which are as long as they come."""
        self._counted = torch.empty(network.axes, 0, dtype=torch.int32)
        """Positions of a prompt that counts from 0."""

    def rows(self, prompt: Prompt) -> tuple[torch.Tensor, torch.Tensor, int]:
        """``[L, H]`` and int32 ``[A, L]`` of a single prompt, and the position after it."""
        embeds, ids, axes = prompt.inputs_embeds[0], prompt.position_ids, self._network.axes
        if ids is None:
            if self._counted.shape[1] < len(embeds):
                self._counted = torch.arange(2 * len(embeds), dtype=torch.int32, device=embeds.device).expand(axes, -1)
            return embeds, self._counted[:, : len(embeds)], len(embeds)
        # Under M-RoPE a fourth row in front counts the text alone.
        ids = ids[-axes:, 0] if ids.dim() == 3 else ids[:1].expand(axes, -1)
        return embeds, ids.to(torch.int32), int(ids[0, -1]) + 1

    def __call__(self, prompts: Seq[Rows]) -> torch.Tensor:
        """Keys and values into their sequences, which grow by the rows; float32 logits ``[len(prompts), V]``.

        The logits are the next pass's memory too.
        """
        shared = any(prompt.shared for prompt in prompts)
        tail, run = self._tail([len(prompt.embeds) for prompt in prompts], shared)
        work, at = tail.work, 0
        # Those that are none begin where the rows end.
        numbers = [[tail.rows if line == _FIRST else 0] * tail.sequences for line in range(len(tail.numbers))]
        for index, prompt in enumerate(prompts):
            rows, sequence = len(prompt.embeds), prompt.sequence
            tail.embeds[at : at + rows].copy_(prompt.embeds)
            tail.positions[:, at : at + rows].copy_(prompt.positions)
            own = work.offset(sequence), sequence.capacity, sequence.length, rows, at
            ahead = (work.offset(prompt.ahead), prompt.ahead.capacity) if prompt.ahead else (0, 1)
            for line, number in zip(numbers, (*own, *ahead, prompt.shared), strict=True):
                line[index] = number
            sequence.length += rows
            at += rows
        # Pinned memory is not handed out again before the copy from it is done.
        staged = torch.tensor(numbers, pin_memory=tail.embeds.is_cuda)
        tail.numbers.copy_(staged, non_blocking=True)
        run()
        return tail.logits[: len(prompts)]

    def text(self, ids: Seq[int], sequence: Sequence) -> torch.Tensor:
        """Text after what is cached: all that the device needs to know goes to it in one copy.

        Args:
            ids: up to 64 tokens.
            sequence: grows by them.

        Returns:
            float32 logits ``[V]``, the next pass's memory too.
        """
        rows, begins = len(ids), sequence.length
        bucket = tail_bucket(rows)
        if bucket not in self._texts:
            self._texts[bucket] = Text(self._network, bucket, self._pool)
        text = self._texts[bucket]
        text([text.work.offset(sequence), sequence.capacity, begins, rows, 0, 0, 1, 0, *ids])
        sequence.length += rows
        return text.logits

    def close(self) -> None:
        """Frees the graphs."""
        self._tails.clear()
        self._texts.clear()
        self._memory = None
        self._counted = self._counted.new_empty(self._network.axes, 0)

    def _tail(self, lengths: list[int], shared: bool) -> tuple[Tail, Callable[[], None]]:
        together = 1 if len(lengths) == 1 else SEVERAL
        bucket = tail_bucket(sum(lengths))
        if bucket > (_LONGEST_CAPTURED if together == 1 else MOST_ROWS):
            self._network.tune_tail(bucket, together)
            tail = self._several(bucket, shared) if together > 1 else self._network.tail(bucket, shared=shared)
            return tail, functools.partial(self._network.prompt, tail)
        key = bucket, together, shared
        if key not in self._tails:
            network = self._network
            network.tune_tail(bucket, together)
            tail = network.tail(bucket, together, shared=shared)
            work = functools.partial(network.prompt, tail)
            self._tails[key] = tail, Captured(work, network.llama.device, self._pool)
        return self._tails[key]

    def _several(self, rows: int, shared: bool) -> Tail:
        if self._memory is None or self._memory.rows < rows:
            self._memory = self._network.tail(max(rows, PASS_ROWS), SEVERAL)
        return replace(self._memory.first(rows), shared=shared)
