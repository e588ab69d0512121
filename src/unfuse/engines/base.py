"""Interface of the engines that run Stage 4 of a model.

An engine takes a prompt that contains the features and returns token ids. It knows no tokenizer, no pixels and no
sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from unfuse.engines.batching import ContinuousBatch
from unfuse.speculation.drafter import Drafts
from unfuse.stages import Prefilled, Prompt, Sampling
from unfuse.unavailable import Unavailable

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class DraftSupport:
    """Use that an engine makes of drafted tokens."""

    verified: bool
    """False if drafts are ignored."""
    faster: bool = False
    """True if a pass verifies several tokens."""
    note: str = ""
    """Reason why drafts do not make answers faster."""


@dataclass(frozen=True, slots=True)
class CountedRows:
    """Part of an engine's work that ``measure.products`` counts."""

    rows: int
    """Rows that a prefill pass computes for a prompt, padding included."""
    attention: bool = True
    """False if kernels outside of torch compute attention: they read the number of positions on the device."""


class Engine(Protocol):
    """Stage 4 of one loaded model."""

    name: str

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for a report about how the engine has run so far."""

    def encoding(self) -> AbstractContextManager[None]:
        """Return a context manager that replaces vision modules by this engine's during stage 3."""

    def prefill(self, prompt: Prompt, sampling: Sampling, *, reuse: bool = False) -> Prefilled:
        """Compute the prompt's keys and values and the first token.

        Args:
            prompt: one prompt.
            sampling: for all tokens, the first included.
            reuse: cache this prompt's keys and values, and reuse cached ones as far as tokens and features agree.

        Raises:
            NonFiniteError: logits are not finite.
        """

    def counted_rows(self, prompt: Prompt) -> CountedRows | Unavailable:
        """Return how the work of Stage 4 is counted for a prompt, or the reason why it is not."""

    @property
    def draft_support(self) -> DraftSupport:
        """Use that ``decode`` makes of drafted tokens."""

    def decode(self, prefilled: Prefilled, max_new_tokens: int, drafts: Drafts | None = None) -> Iterator[int]:
        """Yield the new tokens from the first one to an end token.

        ``prefilled`` may be decoded again once this iterator is exhausted or closed.

        Args:
            prefilled: from ``prefill``. With another ``sampling`` in it, the later tokens are chosen by that.
            max_new_tokens: tokens at most.
            drafts: guesses of the next tokens of this answer. They change the number of passes, but no token.

        Raises:
            NonFiniteError: logits are not finite.
        """

    def answer_batch(self, prompt: Prompt, sampling: Sampling, max_new_tokens: int) -> list[tuple[int, ...]]:
        """Return the new tokens of every row of a padded batch, each up to its end token.

        A row whose logits are not finite ends with ``INVALID_TOKEN``.
        """

    def continuous(self, capacity: int | None = None, *, interleave: bool = False) -> ContinuousBatch:
        """Return a continuous batch.

        Args:
            capacity: requests that run at the same time; by default as many as suit the engine and its memory.
            interleave: let few requests join in a step, for a short time between tokens; otherwise as many as fit, for
                the highest throughput.
        """

    def score(self, prefilled: Prefilled, token_ids: Sequence[int], drafts: Drafts | None = None) -> torch.Tensor:
        """Return the logits of each of ``token_ids`` under teacher forcing.

        Args:
            prefilled: from ``prefill``.
            token_ids: tokens of the answer; an end token may only be the last one.
            drafts: as for ``decode``: the logits then come from passes over drafted tokens.

        Returns:
            float32 ``[len(token_ids), V]``; the first row is ``prefilled.logits``.
        """

    def is_end(self, token_id: int) -> bool:
        """Return whether a token ends an answer."""

    def close(self) -> None:
        """Free the engine's memory; the model stays."""
