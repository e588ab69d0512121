"""Interface between an engine and a drafter, the source of the expected next tokens of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_DRAFT: Final = 15
"""Drafted tokens of one pass: a pass computes up to 16 tokens, and the first of them is chosen already."""


Draft: TypeAlias = "Sequence[int] | NDArray[np.int64]"
"""Token ids that are expected next."""


@dataclass(slots=True)
class SpeculationCounts:
    """Decode passes of an answer, in their order."""

    drafted: list[int] = field(default_factory=list)
    """Drafted tokens of each pass."""
    accepted: list[int] = field(default_factory=list)
    """Accepted tokens of each pass. A pass also gives a token of the model's own."""
    drafting_s: float = 0.0
    """Time that the host spent on drafts."""

    @property
    def decode_passes(self) -> int:
        """Number of passes."""
        return len(self.drafted)

    @property
    def draft_tokens(self) -> int:
        """Drafted tokens of all passes."""
        return sum(self.drafted)

    @property
    def accepted_tokens(self) -> int:
        """Accepted tokens of all passes."""
        return sum(self.accepted)


class Drafts(Protocol):
    """Drafts of one answer."""

    @property
    def counts(self) -> SpeculationCounts:
        """Passes so far."""

    @property
    def pauses(self) -> bool:
        """Whether the next draft is empty, whatever the new tokens are: the pass need not wait for it."""

    def draft(self, new_tokens: Sequence[int]) -> Draft:
        """Take the tokens that the answer got since the last call, and return those that are expected after them.

        The device waits meanwhile, so this must not wait for work on the stream of the answer.

        Returns:
            At most ``MAX_DRAFT`` token ids; the engine takes fewer if the answer or its cache has no room.
        """

    def record(self, drafted: int, accepted: int) -> None:
        """Count a pass that verified ``drafted`` tokens and gave ``accepted`` tokens and the model's own one."""


class Drafter(Protocol):
    """Drafts for the answers of a run."""

    name: str
    """Value of ``--speculate``."""

    def begin(self, prompt_ids: Sequence[int]) -> Drafts:
        """Return the drafts of an answer to a prompt, given by the ids of its text."""

    def learn(self, token_ids: Sequence[int]) -> None:
        """Take a finished answer into account. Benchmarks call it once a sample, not once a repeat."""

    def close(self) -> None:
        """End the run."""


def trimmed(draft: Draft, left: int) -> Draft:
    """Return the tokens of a draft that a pass verifies, if the answer may still get ``left`` tokens.

    The last token of a pass is the model's own, so it is never drafted.
    """
    return draft[: max(0, min(MAX_DRAFT, left - 1))]
