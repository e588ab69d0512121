"""Reports of a device: a scene that it has started, and the answer to each question."""

from __future__ import annotations

from dataclasses import dataclass

from unfuse.samples import Question
from unfuse.stages import Generation
from unfuse.unavailable import Unavailable


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A question with its generation, or with the reason why there is none."""

    question: Question
    generation: Generation | Unavailable
    media_sha256: str = ""
    """Empty if the media could not be read."""
    features_cached: bool = False
    """The features were found in the store."""

    @property
    def error(self) -> str | None:
        """Reason why there is no generation."""
        return self.generation.reason if isinstance(self.generation, Unavailable) else None


@dataclass(frozen=True, slots=True)
class SceneStarted:
    """Reports that a device has taken a scene from its pool and has room for another."""

    question_id: str
    """ID of the scene's first question."""
