"""Stages 3 and 4 of prepared scenes on one device, overlapped with stages 1 and 2 in the pool.

One thread feeds the device. It encodes scenes together when the continuous batch soon has room for their questions, and
runs a step of that batch otherwise; it waits for scenes only when no answer is unfinished.

    pool --PreparedScene--> unencoded --encode--> encoded --join--> Scheduler --Answer--> emit

Memory does not grow with the number of scenes: ``unencoded`` and ``encoded`` hold the scenes that the batch has room
for, and a few more.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import torch

from unfuse.batch_inference.answer import Answer
from unfuse.batch_inference.pool import PoolTimes
from unfuse.batch_inference.scenes import PreparedScene, reason_of
from unfuse.batch_inference.times import Stopwatch, Times
from unfuse.engines.batching import Request
from unfuse.errors import DeviceError, UnfuseError
from unfuse.features import Features
from unfuse.samples import Question
from unfuse.scheduler import ScheduledQuestion, Scheduler
from unfuse.staged_model import StagedModel
from unfuse.stages import Prepared, Sampling
from unfuse.unavailable import Unavailable

ENCODE_TOGETHER: Final = 8
"""Scenes encoded in one call: enough that arithmetic, not memory, limits a tower of CLIP's size."""
_POLL_SECONDS: Final = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowSettings:
    """Settings of one device. Capacity and encode batch change answers by rounding only."""

    max_new_tokens: int
    sampling: Sampling
    capacity: int | None = None
    """Answers generated at the same time; the engine's default for None."""
    encode_together: int = ENCODE_TOGETHER


@dataclass(slots=True)
class _EncodedScene:
    """A scene with features, and its questions that have not joined the batch."""

    scene: PreparedScene
    features: Features
    uploaded: Prepared | None
    """The prompt with the pixels, on the device; None if the features came from the store."""
    waiting: deque[tuple[Question, Prepared | Unavailable]]


@dataclass(eq=False, kw_only=True, slots=True)
class _Running(ScheduledQuestion):
    media_sha256: str
    features_cached: bool


class Source(Protocol):
    """Source of prepared scenes: a pool, or the calls of a Ray actor."""

    ended: bool
    """No more scenes will come."""

    @property
    def size(self) -> int:
        """Number of threads that prepare scenes."""

    @property
    def starved(self) -> bool:
        """No scene is prepared or being prepared."""

    @property
    def times(self) -> PoolTimes:
        """Times so far."""

    def take(self, *, wait_s: float | None = 0.0) -> PreparedScene | None:
        """See ``Pool.take``."""


class Flow:
    """One pass of scenes over one model. For one thread."""

    def __init__(
        self,
        model: StagedModel,
        pool: Source,
        settings: FlowSettings,
        emit: Callable[[Answer], None],
        store: Callable[[Features], None] | None = None,
        started: Callable[[PreparedScene], None] | None = None,
    ):
        """Create an empty batch; nothing runs yet.

        Args:
            model: loaded.
            pool: started.
            settings: options.
            emit: called with every answer, in the order of their ends.
            store: called with the features of every encoded scene.
            started: called with every scene that is taken from the pool.
        """
        self._model = model
        self._pool = pool
        self._settings = settings
        self._emit = emit
        self._store = store
        self._started = started
        # Questions in the batch's queue join as soon as another answer ends.
        self._scheduler: Scheduler[_Running] = Scheduler(model, settings.capacity, queue=settings.encode_together)
        self._unencoded: list[PreparedScene] = []
        self._encoded: deque[_EncodedScene] = deque()
        self._encoding = Stopwatch(model.device)
        self._waited_s = 0.0
        self.most_held = 0
        """Largest number of questions that were taken from the pool and not answered."""
        self.scenes_found = 0
        """Scenes that came with features."""

    def run(self) -> None:
        """Answer all questions of the pool's scenes.

        Raises:
            DeviceError: the device runs out of memory.
            UnfuseError: the pool cannot go on.
        """
        try:
            while True:
                self._join()
                self._take()
                if self._worth_encoding():
                    self._encode()
                elif self._scheduler.unfinished or self._encoded:
                    self._step()
                elif self._pool.ended:
                    return
                else:
                    self._wait()
        except torch.OutOfMemoryError as error:
            raise DeviceError(
                f"device {self._model.device}", found=f"not enough memory ({reason_of(error)})",
                expected=f"enough for {self._scheduler.capacity} answers at a time",
                fix="finished answers are on disk: continue with --resume and a smaller --capacity or --encode-batch",
            ) from None  # fmt: skip
        finally:
            self._scheduler.close()

    def times(self, wall_s: float) -> Times:
        """Return the seconds so far; waits for the device."""
        pool, busy = self._pool.times, self._scheduler.busy_s
        return Times(
            wall_s=wall_s,
            workers=self._pool.size,
            load_s=pool.load_s,
            preprocess_s=pool.preprocess_s,
            encode_s=self._encoding.seconds(),
            prefill_s=busy["prefill"],
            decode_s=busy["decode"],
            room_wait_s=pool.waiting_for_room_s,
            scene_wait_s=self._waited_s,
        )

    @property
    def _num_encoded(self) -> int:
        """Unanswered questions about encoded scenes."""
        return self._scheduler.unfinished + sum(len(each.waiting) for each in self._encoded)

    @property
    def _num_open(self) -> int:
        """Unanswered questions of all scenes taken from the pool."""
        return self._num_encoded + sum(len(scene.questions) for scene in self._unencoded)

    def _take(self) -> None:
        """Take prepared scenes as long as there is room for their questions."""
        while len(self._unencoded) < self._settings.encode_together and self._num_open < self._scheduler.limit:
            scene = self._pool.take()
            if scene is None:
                return
            self._receive(scene)

    def _wait(self) -> None:
        start = time.perf_counter()
        # A partial encode batch polls, because the pool may be starved before another scene comes.
        scene = self._pool.take(wait_s=_POLL_SECONDS if self._unencoded else None)
        self._waited_s += time.perf_counter() - start
        if scene is not None:
            self._receive(scene)

    def _receive(self, scene: PreparedScene) -> None:
        if self._started is not None:
            self._started(scene)
        if scene.features is not None:
            self.scenes_found += 1
            self._encoded.append(_encoded(scene, scene.features.to(self._model.device, non_blocking=True), None))
        elif scene.pixels is not None:
            self._unencoded.append(scene)
        else:
            for question, prompt in _paired(scene):
                assert isinstance(prompt, Unavailable)
                self._fail(scene, [question], prompt)
        self.most_held = max(self.most_held, self._num_open)

    def _worth_encoding(self) -> bool:
        """Encode a partial batch only if no more scenes come, or if the continuous batch would run dry first."""
        if not self._unencoded:
            return False
        full = len(self._unencoded) >= self._settings.encode_together
        no_room = self._num_open >= self._scheduler.limit and self._num_encoded < self._scheduler.capacity
        return full or no_room or self._pool.starved

    def _encode(self) -> None:
        # Powers of two: each size is captured once, and the last scenes of a run need few sizes.
        count = 1 << (len(self._unencoded).bit_length() - 1)
        if len(self._unencoded) == self._settings.encode_together:
            count = len(self._unencoded)
        scenes, self._unencoded = self._unencoded[:count], self._unencoded[count:]
        uploaded = [self._model.adapter.upload(_pixels(scene)) for scene in scenes]
        with self._encoding.running():
            found = features_of(self._model, uploaded)
        for scene, prepared, features in zip(scenes, uploaded, found, strict=True):
            if isinstance(features, Unavailable):
                self._fail(scene, scene.questions, features)
                continue
            if self._store is not None:
                self._store(features)
            self._encoded.append(_encoded(scene, features, prepared))

    def _join(self) -> None:
        """Add the questions of encoded scenes to the batch as long as it has room."""
        joining: list[tuple[_Running, Callable[[], Request]]] = []
        while self._encoded and self._scheduler.unfinished + len(joining) < self._scheduler.limit:
            encoded = self._encoded[0]
            question, prompt = encoded.waiting.popleft()
            if not encoded.waiting:
                self._encoded.popleft()
            if isinstance(prompt, Unavailable):
                self._fail(encoded.scene, [question], prompt)
                continue
            running = _Running(
                question=question,
                media_sha256=encoded.scene.media_sha256,
                features_cached=encoded.scene.features is not None,
            )
            joining.append((running, partial(self._request, encoded, question, prompt)))
        for running, error in self._scheduler.join(joining):
            failure = Unavailable(reason_of(error))
            self._emit(Answer(question=running.question, generation=failure, media_sha256=running.media_sha256))

    def _request(self, encoded: _EncodedScene, question: Question, prompt: Prepared) -> Request:
        if prompt is encoded.scene.pixels and encoded.uploaded is not None:
            prepared = encoded.uploaded
            encoded.uploaded = None
        else:
            prepared = self._model.adapter.rebuild_inputs(prompt, encoded.features)
        return self._model.request(
            question.question_id,
            prepared,
            encoded.features,
            max_new_tokens=self._settings.max_new_tokens,
            sampling=self._settings.sampling,
            reuse=len(encoded.scene.questions) > 1,
        )

    def _step(self) -> None:
        for running in self._scheduler.step():
            outcome = running.generation if running.error is None else Unavailable(reason_of(running.error))
            if outcome is not None:
                self._emit(
                    Answer(
                        question=running.question,
                        generation=outcome,
                        media_sha256=running.media_sha256,
                        features_cached=running.features_cached,
                    )
                )

    def _fail(self, scene: PreparedScene, questions: Iterable[Question], failure: Unavailable) -> None:
        for question in questions:
            self._emit(Answer(question=question, generation=failure, media_sha256=scene.media_sha256))


def _encoded(scene: PreparedScene, features: Features, uploaded: Prepared | None) -> _EncodedScene:
    named = features.known_as(repr(features.provenance))
    return _EncodedScene(scene, named, uploaded, deque(_paired(scene)))


def features_of(model: StagedModel, prepared: Sequence[Prepared]) -> list[Features | Unavailable]:
    """Run Stage 3 of several scenes together; a scene that fails alone is ``Unavailable``."""
    try:
        return [*model.encode_batch(prepared)]
    except (UnfuseError, torch.OutOfMemoryError) as error:
        if len(prepared) == 1:
            return [Unavailable(reason_of(error))]
    return [each for one in prepared for each in features_of(model, [one])]


def _paired(scene: PreparedScene) -> list[tuple[Question, Prepared | Unavailable]]:
    return list(zip(scene.questions, scene.prompts, strict=True))


def _pixels(scene: PreparedScene) -> Prepared:
    assert scene.pixels is not None
    return scene.pixels
