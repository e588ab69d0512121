"""Requests under way: what is known of each, and of tokens that the host has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from unfuse.engines.batching import Request
from unfuse.engines.graphed.caches import Held
from unfuse.engines.graphed.kernels.shared_attention import MEMBERS
from unfuse.engines.sampling import TokenChooser


@dataclass(slots=True, eq=False)
class Row:
    """A request under way."""

    request: Request
    held: Held
    position: int
    """Of the first token after the prompt, on the rotary axes."""
    chooser: TokenChooser | None
    """None where the step chooses: the largest logit."""
    column: int = 0
    """Where its last token is, among those of the step and, behind them, first tokens."""
    launched: int = 1
    """Tokens that are written or on their way."""
    landed: int = 0
    ended: bool = False

    @property
    def length(self) -> int:
        """Of its prompt."""
        return prompt_length(self.request)

    @property
    def goes_on(self) -> bool:
        """Whether another token is wanted, as far as is known."""
        return not self.ended and self.launched < self.request.max_new_tokens


@dataclass(frozen=True, slots=True)
class Flight:
    """Tokens on their way to the host."""

    rows: list[Row]
    tokens: torch.Tensor
    stage: str
    begun: torch.cuda.Event | float
    there: torch.cuda.Event | float


def groups_of(rows: Sequence[Row]) -> list[list[int]]:
    """Columns of rows that begin with the same positions of another sequence."""
    alike: dict[tuple[int, int], list[int]] = {}
    for column, row in enumerate(rows):
        if row.held.shared:
            alike.setdefault((id(row.held.ahead), row.held.shared), []).append(column)
    return [columns[at : at + MEMBERS] for columns in alike.values() for at in range(0, len(columns), MEMBERS)]


def prompt_length(request: Request) -> int:
    """Of its prompt."""
    return request.prompt.length


def positions_of(request: Request) -> int:
    """That its prompt and its answer may take; the last token's keys are never needed."""
    return prompt_length(request) + request.max_new_tokens


def seconds_between(begun: torch.cuda.Event | float, there: torch.cuda.Event | float) -> float:
    """Between the two, once the second has come."""
    if isinstance(begun, float) or isinstance(there, float):
        assert isinstance(begun, float)
        assert isinstance(there, float)
        return there - begun
    there.synchronize()
    milliseconds: float = begun.elapsed_time(there)
    return milliseconds / 1e3
