"""Scenes with their questions, and stages 1 and 2 of a scene: the stages that need no network.

Samples with the same media are one scene: it is loaded, preprocessed and encoded once. Its questions stay together, so
that keys and values of their common prefix are computed once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from unfuse.adapters.base import Preprocessor, SceneInfo
from unfuse.errors import UnfuseError
from unfuse.features import Features
from unfuse.samples import Question, Sample, clean_question
from unfuse.samples.sample import media_key
from unfuse.stages import Loaded, Prepared
from unfuse.unavailable import Unavailable

MAX_QUESTIONS: Final = 256
"""Questions of a scene that are prepared together: enough that loading and encoding it again costs them nothing."""
FeatureLookup = Callable[[str], Features | None]
"""Returns the features of media by their hash, on the CPU; None if they are not in the store."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneQuestions:
    """Media, and the questions about them."""

    sample: Sample
    """A sample with the media; its own question does not count."""
    questions: tuple[Question, ...]

    def without(self, done: Iterable[str]) -> SceneQuestions:
        """Return the scene without the questions in ``done``."""
        answered = frozenset(done)
        return replace(self, questions=tuple(each for each in self.questions if each.question_id not in answered))


def questions_of(
    samples: Iterable[Sample], questions: Sequence[str] | None = None
) -> Iterator[tuple[Sample, Question]]:
    """Yield every question with its sample.

    Args:
        samples: rows of the dataset.
        questions: asked of every sample instead of its own, under the ID ``<sample_id>#<n>``, n from 1.

    Raises:
        PromptError: a question with special tokens.
    """
    cleaned = None if questions is None else [clean_question(text) for text in questions]
    for sample in samples:
        if cleaned is None:
            yield sample, Question(question_id=sample.sample_id, text=clean_question(sample.question))
        else:
            for number, text in enumerate(cleaned, start=1):
                yield sample, Question(question_id=f"{sample.sample_id}#{number}", text=text)


def scenes_of(rows: Iterable[tuple[Sample, Question]]) -> list[SceneQuestions]:
    """Group questions by scene, in the order of each scene's first question.

    A scene with very many questions comes several times, with some of its questions each: all prompts of a scene are
    prepared before its first answer, and its questions go to one device.
    """
    found: dict[Hashable, tuple[Sample, list[Question]]] = {}
    for sample, question in rows:
        found.setdefault(media_key(sample), (sample, []))[1].append(question)
    return [
        SceneQuestions(sample=sample, questions=tuple(questions[start : start + MAX_QUESTIONS]))
        for sample, questions in found.values()
        for start in range(0, len(questions), MAX_QUESTIONS)
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedScene:
    """A scene after stages 1 and 2, on the CPU."""

    questions: tuple[Question, ...]
    prompts: tuple[Prepared | Unavailable, ...]
    """One for each question."""
    media_sha256: str = ""
    features: Features | None = None
    """Features from the store; then no prompt has pixels."""
    load_s: float = 0.0
    preprocess_s: float = 0.0

    @property
    def pixels(self) -> Prepared | None:
        """The prompt with the scene's pixels; None if there is nothing to encode."""
        if self.features is not None:
            return None
        return next((prompt for prompt in self.prompts if isinstance(prompt, Prepared)), None)


def failed_scene(questions: Sequence[Question], reason: str) -> PreparedScene:
    """Return a scene that fails all its questions for one reason."""
    return PreparedScene(questions=tuple(questions), prompts=(Unavailable(reason),) * len(questions))


def prepare(preprocessor: Preprocessor, scene: SceneQuestions, lookup: FeatureLookup | None = None) -> PreparedScene:
    """Run stages 1 and 2 of a scene; an error becomes the reason instead of its prompts."""
    start = time.perf_counter()
    try:
        media = preprocessor.media_sha256(scene.sample) if lookup else ""
        features = lookup(media) if lookup else None
        loaded = preprocessor.load(scene.sample) if features is None else None
    except Exception as error:  # noqa: BLE001 - an error of one scene must not stop the others
        return failed_scene(scene.questions, reason_of(error))
    loaded_at = time.perf_counter()
    prompts = prompts_of(
        preprocessor, scene.questions, loaded, None if features is None else preprocessor.scene_info(features)
    )
    return PreparedScene(
        questions=scene.questions,
        prompts=prompts,
        media_sha256=media if loaded is None else loaded.media_sha256,
        features=features,
        load_s=loaded_at - start,
        preprocess_s=time.perf_counter() - loaded_at,
    )


def prompts_of(
    preprocessor: Preprocessor, questions: Iterable[Question], loaded: Loaded | None, scene: SceneInfo | None = None
) -> tuple[Prepared | Unavailable, ...]:
    """Run stage 2 of every question; an error becomes the reason instead of the prompt.

    Args:
        preprocessor: tokenises and preprocesses.
        questions: of one scene.
        loaded: the scene after stage 1; the first prompt without an error gets its pixels.
        scene: replaces ``loaded`` for an encoded scene.
    """
    prompts: list[Prepared | Unavailable] = []
    for each in questions:
        try:
            if scene is None:
                assert loaded is not None
                prompts.append(prompt := preprocessor.preprocess(loaded, each.text))
                scene = SceneInfo.of(prompt)
            else:
                prompts.append(preprocessor.tokenize(each.text, scene))
        except Exception as error:  # noqa: BLE001 - an error of one question must not stop the others
            prompts.append(Unavailable(reason_of(error)))
    return tuple(prompts)


def reason_of(error: BaseException) -> str:
    """Return an error as one line, with its type unless it is an ``UnfuseError``."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UnfuseError) else f"{type(error).__name__}: {text}"
