"""Continuous batching: requests join a running batch and leave it when their answers end.

Orca (Yu et al., OSDI 2022) calls it iteration-level scheduling: the batch is formed anew at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from unfuse.errors import NonFiniteError
from unfuse.finite import INVALID_TOKEN
from unfuse.stages import Prompt, Sampling, StopReason


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A prompt with its sampling parameters."""

    request_id: str
    """Unique among unfinished requests."""
    prompt: Prompt
    max_new_tokens: int
    sampling: Sampling
    reuse: bool = False
    """Reuse keys and values of an earlier request as far as tokens and features agree."""
    require_inputs: Callable[[], None] | None = None
    """Raises ``NonFiniteError`` if the features in the prompt are not finite. It waits until the device has computed
    them, so an engine calls it after the prefill."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenOutput:
    """One new token of one request."""

    request_id: str
    token_id: int
    """``INVALID_TOKEN`` if the request has failed."""
    finished: StopReason | None
    """Reason why this token is the last; None for any other token."""
    reused_prefix_tokens: int
    """Reused positions of the prompt; equal for all tokens of a request."""
    error: NonFiniteError | None = None
    """Reason why the request has failed and left the batch."""


def input_error(request: Request) -> NonFiniteError | None:
    """Return the fault of the features in a prompt; None if they are finite. Call it after the prefill."""
    try:
        if request.require_inputs is not None:
            request.require_inputs()
    except NonFiniteError as error:
        return error
    return None


def failed(request: Request, error: NonFiniteError) -> TokenOutput:
    """Return the last output of a request that has failed."""
    return TokenOutput(
        request_id=request.request_id, token_id=INVALID_TOKEN, finished=None, reused_prefix_tokens=0, error=error
    )


class ContinuousBatch(Protocol):
    """Unfinished requests of one engine. For one thread at a time."""

    @property
    def capacity(self) -> int:
        """Number of requests that can run at the same time."""

    @property
    def unfinished(self) -> int:
        """Number of requests that were added and have not ended, waiting ones included."""

    @property
    def busy_s(self) -> Mapping[str, float]:
        """Seconds spent in ``prefill`` and in ``decode`` so far."""

    def prepare(self) -> None:
        """Compile, tune and capture in advance, so that the first requests need not wait. Optional."""

    def add(self, requests: Sequence[Request]) -> None:
        """Add requests to the queue; requests of one call may be prefilled together.

        Raises:
            FeaturesError: as ``Engine.prefill``.
        """

    def step(self) -> list[TokenOutput]:
        """Let requests join while there is room, run a decode step, and return new tokens.

        The tokens may be those of an earlier step; without unfinished requests the list is empty.
        """

    def abort(self, request_id: str) -> None:
        """Remove a request, so that it gets no more tokens; an unknown ID is no error."""

    def close(self) -> None:
        """Remove all requests and free their memory; a second call does nothing."""
