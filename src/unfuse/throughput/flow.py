"""Stages 3 and 4 of prepared scenes on one device, overlapped with stages 1 and 2 in the pool.

One thread gives the device its work. It encodes scenes together when the continuous batch will soon have room for their
questions, and lets that batch write tokens otherwise; it waits for scenes only when there is nothing to write.

    pool --PreparedScene--> fresh --encode--> encoded --join--> continuous batch --answers--> emit

Nothing in it grows with the number of scenes: ``fresh`` and ``encoded`` hold what the batch has room for, and a few
more.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import torch

from unfuse.engines.batching import Request, TokenOutput
from unfuse.errors import DeviceError, UnfuseError
from unfuse.features import Features
from unfuse.staged_model import StagedModel
from unfuse.stages import Prepared, Sampling, StopReason
from unfuse.throughput.pool import PoolTimes
from unfuse.throughput.scenes import Asked, PreparedScene, reason_of
from unfuse.throughput.times import Stopwatch, Times
from unfuse.unavailable import Unavailable

ENCODE_TOGETHER: Final = 8
"""Scenes encoded in one call: enough that a tower of CLIP's size is limited by its arithmetic."""
_LOOK_UP_SECONDS: Final = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What became of one question."""

    asked: Asked
    media_sha256: str
    error: str | None = None
    """Why there is no answer; the fields below then mean nothing."""
    text: str = ""
    token_ids: tuple[int, ...] = ()
    stop_reason: StopReason | None = None
    prompt_tokens: int = 0
    reused_prefix_tokens: int = 0
    features_kept: bool = False
    """The features were found in the store."""


@dataclass(frozen=True, slots=True)
class Begun:
    """Says of a scene that it was taken up, and that there is room for another."""

    sample_id: str
    """Of its first question."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowSettings:
    """How one device works; nothing here changes what is answered, but for rounding."""

    max_new_tokens: int
    sampling: Sampling
    capacity: int | None = None
    """Answers written at the same time; the engine's own number by default."""
    encode_together: int = ENCODE_TOGETHER


@dataclass(slots=True)
class _Encoded:
    """A scene with features, and its questions that have not joined the batch."""

    scene: PreparedScene
    features: Features
    uploaded: Prepared | None
    """The prompt that brought the pixels, on the device."""
    left: deque[tuple[Asked, Prepared | Unavailable]]


@dataclass(slots=True)
class _Running:
    asked: Asked
    media_sha256: str
    prompt_tokens: int
    features_kept: bool
    token_ids: list[int] = field(default_factory=list)


class Source(Protocol):
    """Where prepared scenes come from: a pool, or calls that bring them."""

    ended: bool
    """Nothing will come any more."""

    @property
    def size(self) -> int:
        """Threads that prepare."""

    @property
    def starved(self) -> bool:
        """Nothing is prepared, and nothing is being prepared."""

    @property
    def times(self) -> PoolTimes:
        """So far."""

    def take(self, *, wait_s: float | None = 0.0) -> PreparedScene | None:
        """See ``Pool.take``."""


class Flow:
    """One pass of scenes over one model. Not for several threads."""

    def __init__(
        self,
        model: StagedModel,
        pool: Source,
        settings: FlowSettings,
        emit: Callable[[Answer], None],
        keep: Callable[[Features], None] | None = None,
        begun: Callable[[PreparedScene], None] | None = None,
    ):
        """Starts nothing yet.

        Args:
            model: loaded.
            pool: started.
            settings: options.
            emit: called with every answer, in the order in which they end.
            keep: called with the features of every scene that was encoded.
            begun: called with every scene that is taken from the pool.
        """
        self._model = model
        self._pool = pool
        self._settings = settings
        self._emit = emit
        self._keep = keep
        self._begun = begun
        self._batch = model.continuous(settings.capacity)
        # Those that wait in the batch join the moment that others leave it.
        self._most = self._batch.capacity + settings.encode_together
        self._fresh: list[PreparedScene] = []
        self._encoded: deque[_Encoded] = deque()
        self._running: dict[str, _Running] = {}
        self._encoding = Stopwatch(model.device)
        self._waited_s = 0.0
        self.most_held = 0
        """Questions of scenes taken from the pool and not answered, at any one time."""
        self.scenes_found = 0
        """Scenes whose features came with them."""

    def run(self) -> None:
        """Answers everything that the pool prepares.

        Raises:
            DeviceError: the device's memory does not last.
            UnfuseError: the pool cannot go on.
        """
        try:
            while True:
                self._join()
                self._take()
                if self._worth_encoding():
                    self._encode()
                elif self._batch.unfinished or self._encoded:
                    for written in self._batch.step():
                        self._take_down(written)
                elif self._pool.ended:
                    return
                else:
                    self._wait()
        except torch.OutOfMemoryError as error:
            raise DeviceError(
                f"device {self._model.device}", found=f"not enough memory ({reason_of(error)})",
                expected=f"enough for {self._batch.capacity} answers at a time",
                fix="what is answered is kept: go on with --resume and a smaller --capacity or --encode-batch",
            ) from None  # fmt: skip
        finally:
            self._batch.close()

    def times(self, wall_s: float) -> Times:
        """Seconds so far; waits for the device."""
        pool, busy = self._pool.times, self._batch.busy_s
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
    def _ahead(self) -> int:
        """Questions that are encoded or being answered."""
        return self._batch.unfinished + sum(len(each.left) for each in self._encoded)

    @property
    def _unencoded(self) -> int:
        return sum(len(scene.asked) for scene in self._fresh)

    def _take(self) -> None:
        """Takes prepared scenes as far as there is room for their questions."""
        while len(self._fresh) < self._settings.encode_together and self._ahead + self._unencoded < self._most:
            scene = self._pool.take()
            if scene is None:
                return
            self._sort_in(scene)

    def _wait(self) -> None:
        begun = time.perf_counter()
        # With scenes in hand it looks up now and then, to see whether there will be more to encode with them.
        scene = self._pool.take(wait_s=_LOOK_UP_SECONDS if self._fresh else None)
        self._waited_s += time.perf_counter() - begun
        if scene is not None:
            self._sort_in(scene)

    def _sort_in(self, scene: PreparedScene) -> None:
        if self._begun is not None:
            self._begun(scene)
        if scene.features is not None:
            self.scenes_found += 1
            self._encoded.append(_encoded(scene, scene.features.to(self._model.device, non_blocking=True), None))
        elif scene.pixels is not None:
            self._fresh.append(scene)
        else:
            for asked, prompt in _paired(scene):
                assert isinstance(prompt, Unavailable)
                self._refuse(scene, [asked], prompt.reason)
        self.most_held = max(self.most_held, self._ahead + self._unencoded)

    def _worth_encoding(self) -> bool:
        """Few at a time only where no more will come, or where the batch would run dry before more find room."""
        if not self._fresh:
            return False
        full = len(self._fresh) >= self._settings.encode_together
        no_room = self._ahead + self._unencoded >= self._most and self._ahead < self._batch.capacity
        return full or no_room or self._pool.starved

    def _encode(self) -> None:
        # Powers of two: each size is captured once, and a run's last few scenes need few sizes.
        count = 1 << (len(self._fresh).bit_length() - 1)
        if len(self._fresh) == self._settings.encode_together:
            count = len(self._fresh)
        scenes, self._fresh = self._fresh[:count], self._fresh[count:]
        uploaded = [self._model.adapter.upload(_pixels(scene)) for scene in scenes]
        with self._encoding.running():
            found = features_of(self._model, uploaded)
        for scene, prepared, features in zip(scenes, uploaded, found, strict=True):
            if isinstance(features, Unavailable):
                self._refuse(scene, scene.asked, features.reason)
                continue
            if self._keep is not None:
                self._keep(features)
            self._encoded.append(_encoded(scene, features, prepared))

    def _join(self) -> None:
        """Puts encoded scenes' questions into the batch as far as they are wanted there."""
        requests: list[Request] = []
        while self._encoded and self._batch.unfinished + len(requests) < self._most:
            scene = self._encoded[0]
            asked, prompt = scene.left.popleft()
            if not scene.left:
                self._encoded.popleft()
            if isinstance(prompt, Unavailable):
                self._refuse(scene.scene, [asked], prompt.reason)
                continue
            try:
                requests.append(self._request(scene, asked, prompt))
            except UnfuseError as error:
                self._refuse(scene.scene, [asked], reason_of(error))
        self._add(requests)

    def _request(self, scene: _Encoded, asked: Asked, prompt: Prepared) -> Request:
        settings = self._settings
        if prompt is scene.scene.pixels and scene.uploaded is not None:
            prepared = scene.uploaded
            scene.uploaded = None
        else:
            prepared = self._model.adapter.recall(prompt, scene.features)
        request = self._model.request(
            asked.sample_id,
            prepared,
            scene.features,
            max_new_tokens=settings.max_new_tokens,
            sampling=settings.sampling,
            reuse=len(scene.scene.asked) > 1,
        )
        self._running[asked.sample_id] = _Running(
            asked,
            scene.scene.media_sha256,
            prepared.text_tokens + prepared.media_tokens,
            scene.scene.features is not None,
        )
        return request

    def _add(self, requests: list[Request]) -> None:
        try:
            self._batch.add(requests)
        except UnfuseError as error:
            if len(requests) > 1:
                for request in requests:
                    self._add([request])
                return
            running = self._running.pop(requests[0].request_id)
            self._emit(Answer(asked=running.asked, media_sha256=running.media_sha256, error=reason_of(error)))

    def _take_down(self, written: TokenOutput) -> None:
        running = self._running[written.request_id]
        running.token_ids.append(written.token_id)
        if written.finished is None:
            return
        del self._running[written.request_id]
        token_ids = tuple(running.token_ids)
        self._emit(
            Answer(
                asked=running.asked,
                media_sha256=running.media_sha256,
                text=self._model.adapter.decode_text(token_ids),
                token_ids=token_ids,
                stop_reason=written.finished,
                prompt_tokens=running.prompt_tokens,
                reused_prefix_tokens=written.reused_prefix_tokens,
                features_kept=running.features_kept,
            )
        )

    def _refuse(self, scene: PreparedScene, asked: Iterable[Asked], reason: str) -> None:
        for each in asked:
            self._emit(Answer(asked=each, media_sha256=scene.media_sha256, error=reason))


def _encoded(scene: PreparedScene, features: Features, uploaded: Prepared | None) -> _Encoded:
    named = features.known_as(repr(features.provenance))
    return _Encoded(scene, named, uploaded, deque(_paired(scene)))


def features_of(model: StagedModel, prepared: Sequence[Prepared]) -> list[Features | Unavailable]:
    """Run Stage 3 of several scenes together; a scene that fails alone is ``Unavailable``."""
    try:
        return [*model.encode_batch(prepared)]
    except (UnfuseError, torch.OutOfMemoryError) as error:
        if len(prepared) == 1:
            return [Unavailable(reason_of(error))]
    return [each for one in prepared for each in features_of(model, [one])]


def _paired(scene: PreparedScene) -> list[tuple[Asked, Prepared | Unavailable]]:
    return list(zip(scene.asked, scene.prompts, strict=True))


def _pixels(scene: PreparedScene) -> Prepared:
    assert scene.pixels is not None
    return scene.pixels
