"""The border between a model and what runs its Stage 4.

An engine takes a prompt whose features are already in place and gives token ids. It knows no tokenizer, no pixels and
no sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from unfuse.engines.batching import ContinuousBatch
from unfuse.stages import Prefilled, Prompt, Sampling

if TYPE_CHECKING:
    import torch


class Engine(Protocol):
    """Stage 4 of one loaded model."""

    name: str

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of a report must know of how it has run so far."""

    def encoding(self) -> AbstractContextManager[None]:
        """Surrounds stage 3: what of it this engine runs in its own way."""

    def prefill(self, prompt: Prompt, sampling: Sampling, *, reuse: bool = False) -> Prefilled:
        """Computes the prompt's keys and values and the first token.

        Args:
            prompt: one prompt.
            sampling: how tokens are chosen, the first one among them.
            reuse: keep this prompt's keys and values, and start from those kept before as far as tokens and features
                agree.
        """

    def decode(self, prefilled: Prefilled, max_new_tokens: int) -> Iterator[int]:
        """The new tokens one by one, the first one included, up to and with an end token.

        The same ``prefilled`` may be decoded again once this iterator is exhausted or closed.
        """

    def answer_batch(self, prompt: Prompt, sampling: Sampling, max_new_tokens: int) -> list[tuple[int, ...]]:
        """New tokens of every row of a padded batch, each up to and with its end token."""

    def continuous(self, capacity: int | None = None, *, interleave: bool = False) -> ContinuousBatch:
        """Answers to requests that come and go.

        Args:
            capacity: requests written at the same time; by default as many as suit the engine and its memory.
            interleave: let few join at a step, so that nobody waits long for the next token; else as many as can, so
                that all are answered soonest.
        """

    def score(self, prefilled: Prefilled, token_ids: Sequence[int]) -> torch.Tensor:
        """Logits that this engine would choose each of ``token_ids`` from, were it forced to write them.

        Returns:
            float32 ``[len(token_ids), V]``; the first row is ``prefilled.logits``.
        """

    def is_end(self, token_id: int) -> bool:
        """Whether a token ends an answer."""

    def close(self) -> None:
        """Frees what the engine holds beside the model."""
