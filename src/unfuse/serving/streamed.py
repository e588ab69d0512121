"""An answer that the engine's thread generates and the event loop sends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from unfuse.adapters.detokenizer import IncrementalDetokenizer
from unfuse.features import Features
from unfuse.scheduler import ScheduledQuestion
from unfuse.stages import Sampling


class EngineStoppedError(Exception):
    """The engine has stopped, or failed in a way that leaves its state unknown."""


@dataclass(frozen=True, slots=True)
class AnswerDelta:
    """Text of one new token, or the failure that ends the answer."""

    text: str
    failure: Exception | None = None
    last: bool = False


@dataclass(eq=False, kw_only=True, slots=True)
class StreamedAnswer(ScheduledQuestion):
    """A question with its answer as a stream of text. A field is final once the text that it belongs to arrives."""

    features: Features
    max_new_tokens: int
    sampling: Sampling
    preprocess_ms: float = 0.0
    submitted_s: float = 0.0
    """On ``perf_counter``, as the next three."""
    joined_s: float = 0.0
    first_s: float = 0.0
    last_s: float = 0.0
    cancelled: bool = False
    deltas: asyncio.Queue[AnswerDelta] = field(default_factory=asyncio.Queue)
    text: IncrementalDetokenizer | None = None

    async def texts(self, deadline: float) -> AsyncIterator[str]:
        """Yield the text of each token, empty while a character is incomplete.

        Args:
            deadline: on the event loop's clock.

        Raises:
            UnfuseError: the question was refused.
            EngineStoppedError: the engine stopped.
            TimeoutError: the deadline has passed.
        """
        while True:
            async with asyncio.timeout_at(deadline):
                delta = await self.deltas.get()
            if delta.failure is not None:
                raise delta.failure
            yield delta.text
            if delta.last:
                return

    @property
    def stages_ms(self) -> Mapping[str, float]:
        """Wall-clock times of ``queue``, ``preprocess``, ``prefill`` and ``decode``, work on other answers included."""
        return {
            "queue": 1e3 * (self.joined_s - self.submitted_s) - self.preprocess_ms,
            "preprocess": self.preprocess_ms,
            "prefill": 1e3 * (self.first_s - self.joined_s),
            "decode": 1e3 * (self.last_s - self.first_s),
        }
