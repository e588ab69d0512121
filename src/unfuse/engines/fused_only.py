"""Stand-in for the engine of a model that cannot be split, and so has no Stage 4 of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, NoReturn

from unfuse.engines.base import CountedRows, DraftSupport
from unfuse.engines.batching import ContinuousBatch
from unfuse.errors import CutError
from unfuse.speculation.drafter import Drafts
from unfuse.stages import Prefilled, Prompt, Sampling
from unfuse.unavailable import Unavailable

if TYPE_CHECKING:
    import torch


class FusedOnly:
    """Raises the reason at every call of Stage 4."""

    name = "none"
    notes: tuple[str, ...] = ()

    def __init__(self, reason: str):
        self._reason = reason

    @property
    def draft_support(self) -> DraftSupport:
        """See ``Engine.draft_support``."""
        return DraftSupport(verified=False, note=self._reason)

    def encoding(self) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()

    def _refuse(self) -> NoReturn:
        raise CutError("Stage 4", found=self._reason, expected="a model that can be split", fix="use --protocol fused")

    def prefill(self, prompt: Prompt, sampling: Sampling, *, reuse: bool = False) -> Prefilled:
        """Raise ``CutError``."""
        self._refuse()

    def counted_rows(self, prompt: Prompt) -> CountedRows | Unavailable:
        """Return the reason why there is no Stage 4."""
        return Unavailable(self._reason)

    def decode(self, prefilled: Prefilled, max_new_tokens: int, drafts: Drafts | None = None) -> Iterator[int]:
        """Raise ``CutError``."""
        self._refuse()

    def answer_batch(self, prompt: Prompt, sampling: Sampling, max_new_tokens: int) -> list[tuple[int, ...]]:
        """Raise ``CutError``."""
        self._refuse()

    def continuous(self, capacity: int | None = None, *, interleave: bool = False) -> ContinuousBatch:
        """Raise ``CutError``."""
        self._refuse()

    def score(self, prefilled: Prefilled, token_ids: Sequence[int], drafts: Drafts | None = None) -> torch.Tensor:
        """Raise ``CutError``."""
        self._refuse()

    def is_end(self, token_id: int) -> bool:
        """Raise ``CutError``."""
        self._refuse()

    def close(self) -> None:
        """Do nothing."""
