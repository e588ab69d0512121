"""Scenes and their questions, and what becomes of one in stages 1 and 2: the part that needs no network.

Rows that name the same media are one scene: it is loaded, preprocessed and encoded once, and its questions stay
together, so that keys and values of what their prompts share are computed once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from unfuse.adapters.base import Front, Shown, shown
from unfuse.errors import UnfuseError
from unfuse.features import Features
from unfuse.samples import Sample, clean_question
from unfuse.stages import Loaded, Prepared
from unfuse.unavailable import Unavailable

Known = Callable[[str], Features | None]
"""Features of these media by their hash, where they have been encoded before; on the CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """One question, and what its answer is filed under."""

    sample_id: str
    question: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """Media, and what is asked about them."""

    sample: Sample
    """Of which only the media count."""
    asked: tuple[Asked, ...]

    def without(self, done: Iterable[str]) -> Scene:
        """The same without questions that have been answered."""
        known = frozenset(done)
        return replace(self, asked=tuple(each for each in self.asked if each.sample_id not in known))


def questions_of(samples: Iterable[Sample], questions: Sequence[str] | None = None) -> Iterator[tuple[Sample, Asked]]:
    """Every question that is to be answered.

    Args:
        samples: rows.
        questions: asked of every row in the place of its own, and filed under ``<sample_id>#<n>``, n from 1.

    Raises:
        PromptError: a question with special tokens.
    """
    cleaned = None if questions is None else [clean_question(text) for text in questions]
    for sample in samples:
        if cleaned is None:
            yield sample, Asked(sample_id=sample.sample_id, question=clean_question(sample.question))
        else:
            for number, text in enumerate(cleaned, start=1):
                yield sample, Asked(sample_id=f"{sample.sample_id}#{number}", question=text)


def scenes_of(rows: Iterable[tuple[Sample, Asked]]) -> list[Scene]:
    """Questions by their scene, scenes in the order of their first question."""
    found: dict[Any, tuple[Sample, list[Asked]]] = {}
    for sample, asked in rows:
        found.setdefault(_media(sample), (sample, []))[1].append(asked)
    return [Scene(sample=sample, asked=tuple(asked)) for sample, asked in found.values()]


def _media(sample: Sample) -> Any:
    """What two rows share that show the same."""
    files = (sample.event_data, sample.event_image, sample.video, sample.video_frames, sample.image)
    # Rows of text alone have nothing to share.
    alone = sample.sample_id if not any(files) and not sample.frames else None
    return (*files, sample.window, tuple(id(frame) for frame in sample.frames), alone)


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedScene:
    """A scene after stages 1 and 2, on the CPU."""

    asked: tuple[Asked, ...]
    prompts: tuple[Prepared | Unavailable, ...]
    """One for each question."""
    media_sha256: str = ""
    features: Features | None = None
    """Found where they were kept; then no prompt has pixels."""
    load_s: float = 0.0
    preprocess_s: float = 0.0

    @property
    def pixels(self) -> Prepared | None:
        """The prompt that brings the scene's pixels; None where there is nothing to encode."""
        if self.features is not None:
            return None
        return next((prompt for prompt in self.prompts if isinstance(prompt, Prepared)), None)


def failed_scene(asked: Sequence[Asked], reason: str) -> PreparedScene:
    """A scene of which nothing can be asked."""
    return PreparedScene(asked=tuple(asked), prompts=(Unavailable(reason),) * len(asked))


def prepare(front: Front, scene: Scene, known: Known | None = None) -> PreparedScene:
    """Stages 1 and 2 of a scene. Whatever is wrong with it becomes the reason in the place of its prompts."""
    begun = time.perf_counter()
    try:
        media = front.media_sha256(scene.sample) if known else ""
        features = known(media) if known else None
        loaded = front.load(scene.sample) if features is None else None
    except Exception as error:  # noqa: BLE001 - whatever one scene does, the others go on
        return failed_scene(scene.asked, reason_of(error))
    loaded_at = time.perf_counter()
    prompts = prompts_of(front, scene.asked, loaded, None if features is None else front.shown(features))
    return PreparedScene(
        asked=scene.asked,
        prompts=prompts,
        media_sha256=media if loaded is None else loaded.media_sha256,
        features=features,
        load_s=loaded_at - begun,
        preprocess_s=time.perf_counter() - loaded_at,
    )


def prompts_of(
    front: Front, asked: Iterable[Asked], loaded: Loaded | None, scene: Shown | None = None
) -> tuple[Prepared | Unavailable, ...]:
    """Stage 2 of every question; in the place of one that cannot be asked the reason.

    Args:
        front: makes them.
        asked: the questions.
        loaded: what they are about. The first prompt that can be made brings its pixels.
        scene: in the place of ``loaded`` where it has been encoded.
    """
    prompts: list[Prepared | Unavailable] = []
    for each in asked:
        try:
            if scene is None:
                assert loaded is not None
                prompts.append(prompt := front.preprocess(loaded, each.question))
                scene = shown(prompt)
            else:
                prompts.append(front.tokenize(each.question, scene))
        except Exception as error:  # noqa: BLE001 - whatever one question does, the others go on
            prompts.append(Unavailable(reason_of(error)))
    return tuple(prompts)


def reason_of(error: BaseException) -> str:
    """One line; errors of others with their kind."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UnfuseError) else f"{type(error).__name__}: {text}"
