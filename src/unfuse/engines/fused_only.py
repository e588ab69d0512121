"""In the place of an engine where a model cannot be cut: there is no Stage 4 of its own to run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, NoReturn

from unfuse.engines.batching import ContinuousBatch
from unfuse.errors import CutError
from unfuse.stages import Prefilled, Prompt, Sampling

if TYPE_CHECKING:
    import torch


class FusedOnly:
    """Refuses every call of Stage 4, with the reason."""

    name = "none"
    notes: tuple[str, ...] = ()

    def __init__(self, reason: str):
        self._reason = reason

    def encoding(self) -> AbstractContextManager[None]:
        """Nothing of its own."""
        return nullcontext()

    def _refuse(self) -> NoReturn:
        raise CutError("Stage 4", found=self._reason, expected="a model that can be cut", fix="use --protocol fused")

    def prefill(self, prompt: Prompt, sampling: Sampling, *, reuse: bool = False) -> Prefilled:
        """Refused."""
        self._refuse()

    def decode(self, prefilled: Prefilled, max_new_tokens: int) -> Iterator[int]:
        """Refused."""
        self._refuse()

    def answer_batch(self, prompt: Prompt, sampling: Sampling, max_new_tokens: int) -> list[tuple[int, ...]]:
        """Refused."""
        self._refuse()

    def continuous(self, capacity: int | None = None, *, interleave: bool = False) -> ContinuousBatch:
        """Refused."""
        self._refuse()

    def score(self, prefilled: Prefilled, token_ids: Sequence[int]) -> torch.Tensor:
        """Refused."""
        self._refuse()

    def is_end(self, token_id: int) -> bool:
        """Refused."""
        self._refuse()

    def close(self) -> None:
        """Nothing is held."""
