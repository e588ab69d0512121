"""One thread that owns the model. Everything that touches a tensor happens in it; everything else only sends it jobs.

Scenes are encoded between two steps of the answers under way; questions join as soon as there is room. What is written
is handed to the event loop once a step, for all answers together.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from unfuse.adapters.pieces import TextPieces
from unfuse.engines.batching import ContinuousBatch, Request, TokenOutput
from unfuse.errors import UnfuseError
from unfuse.features import Features
from unfuse.measure.clock import StageClock
from unfuse.measure.timers import timer_for
from unfuse.serving.answer import Answer, EngineGoneError, Piece
from unfuse.staged_model import StagedModel
from unfuse.stages import Loaded

_T = TypeVar("_T")
_LOG: Final = logging.getLogger("unfuse.serve")
_UNFIT: Final = (UnfuseError, MemoryError, RuntimeError, ValueError, ArithmeticError, LookupError, TypeError)
"""What one job may fail with while the others go on."""


class BusyError(Exception):
    """As many answers wait as may."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """A scene's features and what they took."""

    features: Features
    on_host: Features | None
    """A copy on the CPU, where one was asked for: no other thread may touch the device."""
    preprocess_ms: float
    encode_ms: float


class EngineLoop:
    """The thread and its queues. Methods but ``run`` are the event loop's."""

    def __init__(self, model: StagedModel, *, capacity: int | None, queue: int, warm: Callable[[], Loaded]):
        """Starts nothing yet.

        Args:
            model: used by this thread alone from ``start`` on.
            capacity: answers written together; None leaves it to the engine.
            queue: answers that may wait.
            warm: gives a scene to answer about before the first client does.
        """
        self.model = model
        self._capacity = capacity
        self._queue = queue
        self._warm = warm
        self._room = capacity or 1
        self._wake = threading.Condition()
        self._jobs: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._waiting: deque[Answer] = deque()
        self._aborted: list[Answer] = []
        self._running: dict[str, Answer] = {}
        self._joining = 0
        """Taken from those that wait, and not yet running."""
        self._numbers = itertools.count()
        self._step_s = 0.0
        self._stopping = False
        self._gone: Exception | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="unfuse-engine")
        self._end: Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.ready = False
        """Whether it has answered once, and still does."""
        self.on_failure: Callable[[], None] = lambda: None
        """Called on the event loop when the engine fails."""
        self.busy_s: Mapping[str, float] = {"prefill": 0.0, "decode": 0.0}
        """The batch's own count of seconds in each stage."""

    @property
    def alive(self) -> bool:
        """Whether it takes jobs."""
        return self._gone is None and not self._stopping

    @property
    def failure(self) -> BaseException | None:
        """Why it ended by itself."""
        return self._end.exception() if self._end is not None and self._end.done() else None

    @property
    def num_waiting(self) -> int:
        """Answers that wait for their turn."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Answers being written."""
        return len(self._running)

    def start(self) -> None:
        """From the event loop that answers are handed to."""
        self._loop = asyncio.get_running_loop()
        self._end = self._thread.submit(self.run)

    async def encode(self, loaded: Loaded, *, host_copy: bool = False) -> Encoded:
        """Stages 2 and 3 of a scene; with a copy on the CPU where asked for.

        Raises:
            UnfuseError: the model cannot take it.
            EngineGoneError: the engine stopped.
        """
        return await self._on_thread(lambda: self._encoded(loaded, host_copy=host_copy))

    async def placed(self, features: Features) -> Features:
        """Features on the model's device."""
        return await self._on_thread(lambda: features.to(self.model.device))

    def submit(self, answer: Answer) -> None:
        """Puts a question in the queue; its text comes through ``answer.texts``.

        Raises:
            BusyError: the queue is full.
            EngineGoneError: the engine stopped.
        """
        with self._wake:
            self._require_alive()
            if len(self._waiting) + self._joining + len(self._running) >= self._room + self._queue:
                raise BusyError
            answer.request_id = f"answer-{next(self._numbers)}"
            answer.submitted_s = time.perf_counter()
            self._waiting.append(answer)
            self._wake.notify()

    def abort(self, answer: Answer) -> None:
        """Nobody waits for it any more."""
        with self._wake:
            if answer.finished is None and not answer.cancelled:
                answer.cancelled = True
                self._aborted.append(answer)
                self._wake.notify()

    def close(self) -> None:
        """Ends the thread after the step it is in; answers under way fail."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.shutdown()

    def run(self) -> None:
        """The thread."""
        device = self.model.device
        if device.type == "cuda":
            import torch

            torch.cuda.set_device(device)  # each thread has a current device of its own
        try:
            batch = self.model.continuous(self._capacity, interleave=True)
            batch.prepare()
            self._room = batch.capacity
            try:
                self._warm_up(batch)
                self.ready = True
                while not self._stopping:
                    self._round(batch)
            finally:
                batch.close()
            self._fail_all(EngineGoneError("the server is shutting down"))
        except BaseException as error:
            self._fail_all(EngineGoneError(f"the engine failed ({type(error).__name__})"))
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
        if self._gone is not None or self._stopping:
            raise self._gone or EngineGoneError("the server is shutting down")

    def _warm_up(self, batch: ContinuousBatch) -> None:
        features = self._encoded(self._warm()).features
        for _ in range(2):  # the second takes over the first one's prefix
            request = self.model.request("warm-up", "", features, max_new_tokens=4, reuse=True)
            batch.add([request])
            while batch.unfinished and not self._stopping:
                batch.step()
            batch.abort("warm-up")

    def _round(self, batch: ContinuousBatch) -> None:
        """Some jobs, whoever joins or leaves, and one step."""
        with self._wake:
            while not (self._jobs or self._waiting or self._aborted or self._running or self._stopping):
                self._wake.wait()
            aborted, self._aborted = self._aborted, []
            for answer in aborted:
                if answer in self._waiting:
                    self._waiting.remove(answer)
        for answer in aborted:
            if self._running.pop(answer.request_id, None):
                batch.abort(answer.request_id)
        self._do_jobs()
        out = self._join(batch, self._next(batch.capacity - len(self._running)))
        if self._running:
            started = time.perf_counter()
            out += [self._heard(written) for written in batch.step()]
            self._step_s = time.perf_counter() - started
            self.busy_s = batch.busy_s
        self._hand_over(out)

    def _do_jobs(self) -> None:
        """As long as a step takes: new scenes and answers under way get the same share of the device."""
        until = time.perf_counter() + self._step_s
        while True:
            with self._wake:
                job = self._jobs.popleft() if self._jobs else None
            if job is None:
                return
            _do(*job)
            if time.perf_counter() > until:
                return

    def _next(self, room: int) -> list[Answer]:
        with self._wake:
            self._joining = min(room, len(self._waiting))
            return [self._waiting.popleft() for _ in range(self._joining)]

    def _join(self, batch: ContinuousBatch, answers: Sequence[Answer]) -> list[tuple[Answer, Piece]]:
        """Adds them to the batch; says which of them cannot be."""
        failed: list[tuple[Answer, Piece]] = []
        for answer in answers:
            started = time.perf_counter()
            try:
                request = self._request(answer)
                batch.add([request])
            except _UNFIT as error:
                if not isinstance(error, UnfuseError):
                    _LOG.exception("a question could not be asked")
                failed.append((answer, Piece("", error)))
                with self._wake:
                    self._joining -= 1
                continue
            answer.prompt_tokens = request.prompt.length
            answer.joined_s = time.perf_counter()
            answer.preprocess_ms = 1e3 * (answer.joined_s - started)
            answer.text = TextPieces(self.model.adapter.decode_text)
            with self._wake:
                self._running[answer.request_id] = answer
                self._joining -= 1
        return failed

    def _request(self, answer: Answer) -> Request:
        return self.model.request(
            answer.request_id,
            answer.question,
            answer.features,
            max_new_tokens=answer.max_new_tokens,
            sampling=answer.sampling,
            reuse=True,
        )

    def _heard(self, written: TokenOutput) -> tuple[Answer, Piece]:
        answer = self._running[written.request_id]
        assert answer.text is not None
        answer.last_s = time.perf_counter()
        if not answer.output_tokens:
            answer.first_s = answer.last_s
            answer.reused_prefix_tokens = written.reused_prefix_tokens
        answer.output_tokens += 1
        text = answer.text.add(written.token_id)
        if written.finished is not None:
            text += answer.text.end()
            answer.finished = written.finished
            del self._running[written.request_id]
        return answer, Piece(text, last=written.finished is not None)

    def _encoded(self, loaded: Loaded, *, host_copy: bool = False) -> Encoded:
        clock = StageClock(timer_for(self.model.device))
        with clock.stage("preprocess"):
            prepared = self.model.preprocess(loaded)
        with clock.stage("encode"):
            features = self.model.encode(prepared)
        return Encoded(
            features=features,
            on_host=features.to("cpu") if host_copy else None,
            preprocess_ms=clock.stages["preprocess"].host_ms,
            encode_ms=clock.stages["encode"].host_ms,
        )

    def _hand_over(self, out: list[tuple[Answer, Piece]]) -> None:
        """To the event loop, in one call; an answer that nobody waits for is left to the garbage collector."""

        def put() -> None:
            for answer, piece in out:
                answer.pieces.put_nowait(piece)

        if out:
            self._on_loop(put)

    def _on_loop(self, call: Callable[[], None]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:  # it is closed: nobody is left to hear
            self._stopping = True

    def _fail_all(self, why: EngineGoneError) -> None:
        with self._wake:
            self._gone = why
            answers = [*self._running.values(), *self._waiting]
            jobs = list(self._jobs)
            self._running.clear()
            self._waiting.clear()
            self._jobs.clear()
        for _, future in jobs:
            if future.set_running_or_notify_cancel():
                future.set_exception(why)
        self._hand_over([(answer, Piece("", why)) for answer in answers])


def _do(work: Callable[[], Any], future: Future[Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except _UNFIT as error:
        if not isinstance(error, UnfuseError):
            _LOG.exception("a scene could not be encoded")
        future.set_exception(error)
