"""The thread that owns the model. All tensor work runs on it; other threads send it jobs.

Scenes are encoded between two steps of the unfinished answers; questions join as soon as there is room. New text is
handed to the event loop once a step, for all answers together.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from unfuse.adapters.detokenizer import IncrementalDetokenizer
from unfuse.engines.batching import Request
from unfuse.errors import UnfuseError
from unfuse.features import Features
from unfuse.measure.clock import StageClock
from unfuse.measure.timers import timer_for
from unfuse.samples import Question
from unfuse.scheduler import Scheduler
from unfuse.serving.streamed import AnswerDelta, EngineStoppedError, StreamedAnswer
from unfuse.staged_model import StagedModel
from unfuse.stages import Loaded, Sampling

_T = TypeVar("_T")
_LOG: Final = logging.getLogger("unfuse.serve")
_REFUSALS: Final = (UnfuseError, MemoryError, RuntimeError, ValueError, ArithmeticError, LookupError, TypeError)
"""Errors of one job that leave the others unharmed."""


class BusyError(Exception):
    """The queue is full."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """Features of a scene, with the times of the stages that made them."""

    features: Features
    on_host: Features | None
    """A copy on the CPU, if it was requested: no other thread may touch the device."""
    preprocess_ms: float
    encode_ms: float


class EngineLoop:
    """The engine's thread and its queues. All methods except ``run`` are for the event loop's thread."""

    def __init__(self, model: StagedModel, *, capacity: int | None, queue: int, warm: Callable[[], Loaded]):
        """Start nothing yet.

        Args:
            model: used by the engine's thread alone from ``start`` on.
            capacity: answers generated at the same time; the engine's default for None.
            queue: answers that may wait.
            warm: loads the scene of the warm-up question.
        """
        self.model = model
        self._capacity = capacity
        self._queue = queue
        self._warm = warm
        self._room = capacity or 1
        self._wake = threading.Condition()
        self._jobs: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._waiting: deque[StreamedAnswer] = deque()
        self._aborted: list[StreamedAnswer] = []
        self._unfinished: set[StreamedAnswer] = set()
        """Answers that wait, join the batch or are in it."""
        self._step_s = 0.0
        self._stopping = False
        self._stopped: Exception | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="unfuse-engine")
        self._end: Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.ready = False
        """Whether the engine has answered the warm-up question and still runs."""
        self.on_failure: Callable[[], None] = lambda: None
        """Called on the event loop when the engine fails."""
        self.busy_s: Mapping[str, float] = {"prefill": 0.0, "decode": 0.0}
        """Seconds of the batch in each stage."""

    @property
    def alive(self) -> bool:
        """True if the engine accepts jobs."""
        return self._stopped is None and not self._stopping

    @property
    def failure(self) -> BaseException | None:
        """Error that ended the engine."""
        return self._end.exception() if self._end is not None and self._end.done() else None

    @property
    def num_waiting(self) -> int:
        """Number of answers in the queue."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Number of answers in the batch."""
        return len(self._unfinished) - len(self._waiting)

    def start(self) -> None:
        """Start the thread; the running event loop receives the answers."""
        self._loop = asyncio.get_running_loop()
        self._end = self._thread.submit(self.run)

    async def encode(self, loaded: Loaded, *, host_copy: bool = False) -> Encoded:
        """Run stages 2 and 3 of a scene; copy the features to the CPU if ``host_copy`` is set.

        Raises:
            UnfuseError: the model does not accept the scene.
            EngineStoppedError: the engine stopped.
        """
        return await self._on_thread(lambda: self._encode(loaded, host_copy=host_copy))

    async def to_device(self, features: Features) -> Features:
        """Return the features on the model's device."""
        return await self._on_thread(lambda: features.to(self.model.device))

    def submit(self, answer: StreamedAnswer) -> None:
        """Put a question in the queue; ``answer.texts`` yields its text.

        Raises:
            BusyError: the queue is full.
            EngineStoppedError: the engine stopped.
        """
        with self._wake:
            self._require_alive()
            if len(self._unfinished) >= self._room + self._queue:
                raise BusyError
            answer.submitted_s = time.perf_counter()
            self._unfinished.add(answer)
            self._waiting.append(answer)
            self._wake.notify()

    def abort(self, answer: StreamedAnswer) -> None:
        """Stop an answer that no client waits for."""
        with self._wake:
            if answer.generation is None and not answer.cancelled:
                answer.cancelled = True
                self._aborted.append(answer)
                self._wake.notify()

    def close(self) -> None:
        """End the thread after its current step; unfinished answers fail."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.shutdown()

    def run(self) -> None:
        """Run the engine until ``close``, on the engine's thread."""
        device = self.model.device
        if device.type == "cuda":
            import torch

            torch.cuda.set_device(device)  # each thread has its own current device
        try:
            scheduler: Scheduler[StreamedAnswer] = Scheduler(
                self.model, self._capacity, interleave=True, refusals=_REFUSALS
            )
            scheduler.prepare()
            self._room = scheduler.capacity
            try:
                self._warm_up(scheduler)
                self.ready = True
                while not self._stopping:
                    self._round(scheduler)
            finally:
                scheduler.close()
            self._fail_all(EngineStoppedError("the server is shutting down"))
        except BaseException as error:
            reason = str(error) if isinstance(error, UnfuseError) else type(error).__name__
            self._fail_all(EngineStoppedError(f"the engine failed ({reason})"))
            self._on_loop(self.on_failure)
            raise
        finally:
            self.ready = False
            self.model.close()

    async def _on_thread(self, work: Callable[[], _T]) -> _T:
        future: Future[_T] = Future()
        with self._wake:
            self._require_alive()
            self._jobs.append((work, future))
            self._wake.notify()
        return await asyncio.wrap_future(future)

    def _require_alive(self) -> None:
        if not self.alive:
            raise self._stopped or EngineStoppedError("the server is shutting down")

    def _warm_up(self, scheduler: Scheduler[StreamedAnswer]) -> None:
        features = self._encode(self._warm()).features
        question = Question(question_id="warm-up", text="")
        for _ in range(2):  # the second reuses the first one's prefix
            answer = StreamedAnswer(question=question, features=features, max_new_tokens=4, sampling=Sampling())
            for _, error in scheduler.join([(answer, partial(self._request, answer))]):
                raise error
            while scheduler.unfinished and not self._stopping:
                deque(scheduler.step(), maxlen=0)
            if answer.error is not None:
                raise answer.error
            scheduler.abort(answer)

    def _round(self, scheduler: Scheduler[StreamedAnswer]) -> None:
        """Run some jobs, let answers join and leave, and run one step."""
        with self._wake:
            while not (self._jobs or self._unfinished or self._aborted or self._stopping):
                self._wake.wait()
            aborted, self._aborted = self._aborted, []
            for answer in aborted:
                if answer in self._waiting:
                    self._waiting.remove(answer)
                self._unfinished.discard(answer)
        for answer in aborted:
            scheduler.abort(answer)
        self._do_jobs()
        with self._wake:
            room = min(scheduler.capacity - scheduler.unfinished, len(self._waiting))
            joining = [self._waiting.popleft() for _ in range(room)]
        deltas = self._join(scheduler, joining)
        if scheduler.unfinished:
            start = time.perf_counter()
            deltas += [(answer, self._delta(answer)) for answer in scheduler.step()]
            self._step_s = time.perf_counter() - start
            self.busy_s = scheduler.busy_s
        self._hand_over(deltas)

    def _do_jobs(self) -> None:
        """Run jobs for as long as a step takes: new scenes and unfinished answers share the device equally."""
        until = time.perf_counter() + self._step_s
        while True:
            with self._wake:
                job = self._jobs.popleft() if self._jobs else None
            if job is None:
                return
            _do(*job)
            if time.perf_counter() > until:
                return

    def _join(
        self, scheduler: Scheduler[StreamedAnswer], answers: Sequence[StreamedAnswer]
    ) -> list[tuple[StreamedAnswer, AnswerDelta]]:
        """Add answers to the batch; return the failures of the refused questions."""
        failures: list[tuple[StreamedAnswer, AnswerDelta]] = []
        for answer in answers:
            start = time.perf_counter()
            refused = scheduler.join([(answer, partial(self._request, answer))])
            answer.joined_s = time.perf_counter()
            answer.preprocess_ms = 1e3 * (answer.joined_s - start)
            answer.text = IncrementalDetokenizer(self.model.adapter.decode_text)
            for _, error in refused:
                if not isinstance(error, UnfuseError):
                    _LOG.error("a question was refused", exc_info=error)
                self._unfinished.discard(answer)
                failures.append((answer, AnswerDelta("", error)))
        return failures

    def _request(self, answer: StreamedAnswer) -> Request:
        return self.model.request(
            answer.question.question_id,
            answer.question.text,
            answer.features,
            max_new_tokens=answer.max_new_tokens,
            sampling=answer.sampling,
            reuse=True,
        )

    def _delta(self, answer: StreamedAnswer) -> AnswerDelta:
        """Return the text of the answer's new token, or its failure."""
        assert answer.text is not None
        answer.last_s = time.perf_counter()
        if answer.error is not None:
            self._unfinished.discard(answer)
            return AnswerDelta("", answer.error)
        if len(answer.token_ids) == 1:
            answer.first_s = answer.last_s
        text = answer.text.add(answer.token_ids[-1])
        if answer.generation is None:
            return AnswerDelta(text)
        self._unfinished.discard(answer)
        return AnswerDelta(text + answer.text.end(), last=True)

    def _encode(self, loaded: Loaded, *, host_copy: bool = False) -> Encoded:
        clock = StageClock(timer_for(self.model.device))
        with clock.stage("preprocess"):
            prepared = self.model.preprocess(loaded)
        with clock.stage("encode"):
            features = self.model.encode(prepared)
        # The clock has waited for the device; a scene of NaN must not be cached.
        features.require_finite()
        return Encoded(
            features=features,
            on_host=features.to("cpu") if host_copy else None,
            preprocess_ms=clock.stages["preprocess"].host_ms,
            encode_ms=clock.stages["encode"].host_ms,
        )

    def _hand_over(self, deltas: list[tuple[StreamedAnswer, AnswerDelta]]) -> None:
        """Send deltas to the event loop in one call."""

        def put() -> None:
            for answer, delta in deltas:
                answer.deltas.put_nowait(delta)

        if deltas:
            self._on_loop(put)

    def _on_loop(self, call: Callable[[], None]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:  # the event loop is closed
            self._stopping = True

    def _fail_all(self, reason: EngineStoppedError) -> None:
        with self._wake:
            self._stopped = reason
            answers, jobs = list(self._unfinished), list(self._jobs)
            self._unfinished.clear()
            self._waiting.clear()
            self._jobs.clear()
        for _, future in jobs:
            if future.set_running_or_notify_cancel():
                future.set_exception(reason)
        self._hand_over([(answer, AnswerDelta("", reason)) for answer in answers])


def _do(work: Callable[[], Any], future: Future[Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except _REFUSALS as error:
        if not isinstance(error, UnfuseError):
            _LOG.exception("a scene could not be encoded")
        future.set_exception(error)
