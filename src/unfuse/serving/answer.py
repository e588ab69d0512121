"""An answer under way: filled by the engine's thread, heard on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from unfuse.adapters.pieces import TextPieces
from unfuse.features import Features
from unfuse.stages import Sampling, StopReason


class EngineGoneError(Exception):
    """The engine has stopped, or failed in a way that leaves its state unknown."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What a step brought one answer."""

    text: str
    failure: Exception | None = None
    last: bool = False


@dataclass(eq=False, slots=True)
class Answer:
    """A question and its answer under way. Fields are settled when the text that they belong to arrives."""

    question: str
    features: Features
    max_new_tokens: int
    sampling: Sampling
    request_id: str = ""
    prompt_tokens: int = 0
    reused_prefix_tokens: int = 0
    output_tokens: int = 0
    finished: StopReason | None = None
    preprocess_ms: float = 0.0
    submitted_s: float = 0.0
    """On ``perf_counter``, as the next three."""
    joined_s: float = 0.0
    first_s: float = 0.0
    last_s: float = 0.0
    cancelled: bool = False
    pieces: asyncio.Queue[Piece] = field(default_factory=asyncio.Queue)
    text: TextPieces | None = None

    async def texts(self, deadline: float) -> AsyncIterator[str]:
        """Each token's text, empty where a character is not whole yet.

        Args:
            deadline: on the event loop's clock.

        Raises:
            UnfuseError: the question cannot be asked.
            EngineGoneError: the engine stopped.
            TimeoutError: it is past the deadline.
        """
        while True:
            async with asyncio.timeout_at(deadline):
                piece = await self.pieces.get()
            if piece.failure is not None:
                raise piece.failure
            yield piece.text
            if piece.last:
                return

    @property
    def stages_ms(self) -> Mapping[str, float]:
        """``queue``, ``preprocess``, ``prefill``, ``decode``: of this answer on the wall, others' work within."""
        return {
            "queue": 1e3 * (self.joined_s - self.submitted_s) - self.preprocess_ms,
            "preprocess": self.preprocess_ms,
            "prefill": 1e3 * (self.first_s - self.joined_s),
            "decode": 1e3 * (self.last_s - self.first_s),
        }
