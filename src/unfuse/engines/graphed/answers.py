"""Several answers written together, a token each at a time, on one captured step that others use as well."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Final

import torch

from unfuse.engines.graphed.caches import Sequence
from unfuse.engines.graphed.capture import Captured, go_to, ordinary_tensors
from unfuse.engines.graphed.network import Batch, Network
from unfuse.engines.sampling import TokenChooser
from unfuse.stages import Prefilled

_MORE: Final = 512
"""Positions that an answer is given when it has used up its room."""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class State:
    """Of a prompt, as ``Prefilled`` carries it."""

    sequence: Sequence
    position: int
    """Of the first token after the prompt, on the rotary axes."""
    mark: torch.Tensor
    """The generator's state before that token's successor is chosen."""


@dataclass(slots=True)
class Step:
    """A captured decode step and who is using it."""

    batch: Batch
    chooser: TokenChooser
    run: Captured
    user: weakref.ref[Answers] | None = None
    """Not owned: whoever is done writing is to be forgotten, and its memory freed."""


class Answers:
    """Steps are started and looked at apart, so that the device need not wait for the host.

    Whoever starts a step that another has used since puts its own state there first.
    """

    def __init__(self, step: Step, rows: Seq[Prefilled], network: Network):
        self._step, self._rows, self._network = step, rows, network
        self._tokens = [row.token_id for row in rows]
        self._taken = 0
        self._mark: torch.Tensor = rows[0].state.mark
        self._flying: deque[tuple[torch.Tensor, torch.cuda.Event | None]] = deque()
        self._landed: deque[list[int]] = deque()

    @ordinary_tensors()
    def launch(self) -> None:
        """Starts the next step; its tokens come with ``land``."""
        go_to(self._network.llama.device)
        step = self._step
        if step.user is None or step.user() is not self or self._grown():
            self._take_over()
        step.run()
        self._taken += 1
        self._mark = step.chooser.generator.get_state()
        token = step.batch.token
        if not token.is_cuda:
            self._flying.append((token.clone(), None))
            return
        there = torch.empty(len(token), dtype=token.dtype, pin_memory=True)
        there.copy_(token, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._flying.append((there, event))

    def land(self) -> list[int]:
        """Tokens of the oldest step that was not yet looked at; waits for it."""
        if not self._landed:
            self._land()
        return self._landed.popleft()

    @ordinary_tensors()
    def forced(self, token: int) -> torch.Tensor:
        """Logits ``[V]`` after one more token, whatever would have been chosen."""
        go_to(self._network.llama.device)
        self._tokens = [token]
        self._take_over()
        self._step.run()
        self._taken += 1
        return self._step.batch.logits[0].clone()

    def _grown(self) -> bool:
        """Makes room for answers that are longer than was thought; whether their memory has moved."""
        moved = False
        for row in self._rows:
            sequence, written = row.state.sequence, row.prompt_tokens + self._taken
            if written >= sequence.capacity:
                sequence.reserve(written + _MORE, written)
                moved = True
        return moved

    def _take_over(self) -> None:
        """Puts this answer's state where the step reads it: another may have used it since."""
        while self._flying:
            self._land()
        self._grown()
        step, batch = self._step, self._step.batch
        step.user = weakref.ref(self)
        work, nowhere = batch.work, batch.work.nowhere
        sequences = [row.state.sequence for row in self._rows]
        idle = batch.rows - len(self._rows)

        def put(target: torch.Tensor, values: list[int], rest: int) -> None:
            target.copy_(torch.tensor([*values, *[rest] * idle], dtype=target.dtype))

        put(batch.token, self._tokens, 0)
        put(batch.length, [row.prompt_tokens + self._taken for row in self._rows], 0)
        put(batch.position, [row.state.position + self._taken for row in self._rows], 0)
        put(batch.caches, [work.offset(s) for s in sequences], work.offset(nowhere))
        put(batch.capacity, [s.capacity for s in sequences], nowhere.capacity)
        step.chooser.set(self._rows[0].sampling)
        step.chooser.generator.set_state(self._mark)

    def _land(self) -> None:
        there, event = self._flying.popleft()
        if event is not None:
            event.synchronize()
        self._tokens = there.tolist()[: len(self._rows)]
        self._landed.append(self._tokens)
