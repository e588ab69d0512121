"""Continuous batching: answers that are written together, each joining when it comes and leaving when it ends.

Orca (Yu et al., OSDI 2022) calls it iteration-level scheduling: who is in the batch is decided at every step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from unfuse.stages import Prompt, Sampling, StopReason


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
class TokenOutput:
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

    def step(self) -> list[TokenOutput]:
        """Lets requests join as far as there is room, writes one more token of each, and says what was written.

        What it says may lag behind what was started by a step; with nothing unfinished it is empty.
        """

    def abort(self, request_id: str) -> None:
        """Forgets a request; one that is not there is no error. Nothing more is said of it."""

    def close(self) -> None:
        """Forgets all requests and frees what they held; a second call does nothing."""
