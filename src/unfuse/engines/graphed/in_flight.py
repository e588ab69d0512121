"""State of running requests, and decode steps with tokens that the host has not read yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from unfuse.engines.batching import Request
from unfuse.engines.graphed.kernels.shared_prefix_attention import MEMBERS
from unfuse.engines.graphed.prefix_cache import CacheEntry
from unfuse.engines.sampling import TokenChooser


@dataclass(slots=True, eq=False)
class RunningRequest:
    """A request that has joined the batch."""

    request: Request
    entry: CacheEntry
    position: int
    """Rotary position of the first token after the prompt."""
    chooser: TokenChooser | None
    """Samples the tokens; None for greedy decoding: the captured step then takes the argmax."""
    slot: int = 0
    """Index of the request's last token in the buffers on the device.
    Below ``MAX_BATCH``: the slot in the batch. From ``MAX_BATCH`` on: ``slot - MAX_BATCH`` is the index in
    ``first_tokens``, the tokens of prompts that were prefilled since the last decode step.
    """
    submitted: int = 1
    """Tokens computed so far, including tokens of steps in flight."""
    received: int = 0
    """Tokens that the host has read."""
    ended: bool = False

    @property
    def length(self) -> int:
        """Positions of the prompt."""
        return self.request.prompt.length

    @property
    def unfinished(self) -> bool:
        """True if another token must be computed. The host may not have read an end token yet."""
        return not self.ended and self.submitted < self.request.max_new_tokens


@dataclass(frozen=True, slots=True)
class InFlightStep:
    """A prefill or decode step during the copy of its tokens to the host."""

    requests: list[RunningRequest]
    tokens: torch.Tensor
    """int64 ``[len(requests)]``, pinned."""
    stage: str
    """``prefill`` or ``decode``."""
    start: torch.cuda.Event | float
    end: torch.cuda.Event | float


def groups_of(requests: Sequence[RunningRequest]) -> list[list[int]]:
    """Return groups of at most ``MEMBERS`` slots; the requests of a group share a prefix."""
    shared: dict[tuple[int, int], list[int]] = {}
    for slot, each in enumerate(requests):
        if each.entry.prefix_length:
            shared.setdefault((id(each.entry.prefix_entry), each.entry.prefix_length), []).append(slot)
    return [slots[at : at + MEMBERS] for slots in shared.values() for at in range(0, len(slots), MEMBERS)]


def max_positions(request: Request) -> int:
    """Return the positions of a prompt with its longest answer.

    The sum includes the answer's last token, although no later token reads its keys and values.
    """
    return request.prompt.length + request.max_new_tokens


def seconds_between(start: torch.cuda.Event | float, end: torch.cuda.Event | float) -> float:
    """Return the seconds between two events; wait for the second event."""
    if isinstance(start, float) or isinstance(end, float):
        assert isinstance(start, float)
        assert isinstance(end, float)
        return end - start
    end.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return milliseconds / 1e3
