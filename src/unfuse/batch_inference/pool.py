"""A bounded pool of threads that prepare scenes: each thread uses a worker process, or prepares by itself."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, Self

from unfuse.adapters.base import Preprocessor
from unfuse.batch_inference.scenes import FeatureLookup, PreparedScene, SceneQuestions, prepare

NextScene = Callable[[], SceneQuestions | None]
"""Returns the next scene, or None at the end; called by several threads, and may wait."""


class Preparer(Protocol):
    """Prepares scenes, one at a time."""

    deaths: int
    """Worker processes that died so far."""

    def __call__(self, scene: SceneQuestions) -> PreparedScene:
        """Run stages 1 and 2."""

    def interrupt(self) -> None:
        """End soon, also while at work; called by another thread."""

    def close(self) -> None:
        """Free resources, once no longer at work."""


class InProcessPreparer:
    """Prepares in this process: for few scenes, because a worker's start costs more than it saves."""

    deaths = 0

    def __init__(self, preprocessor: Preprocessor, lookup: FeatureLookup | None = None):
        self._preprocessor = preprocessor
        self._lookup = lookup

    def __call__(self, scene: SceneQuestions) -> PreparedScene:
        """See ``prepare``."""
        return prepare(self._preprocessor, scene, self._lookup)

    def interrupt(self) -> None:
        """Do nothing: a scene takes little time."""

    def close(self) -> None:
        """Do nothing: no resource is held."""


@dataclass(slots=True)
class PoolTimes:
    """Seconds of all threads of a pool together."""

    load_s: float = 0.0
    preprocess_s: float = 0.0
    waiting_for_room_s: float = 0.0
    """A scene was prepared, and the queue was full."""
    waiting_for_scenes_s: float = 0.0
    """There was no scene to prepare."""
    most_prepared: int = 0
    """Prepared scenes at any one time, including those that threads hold."""


class Pool:
    """Prepares scenes ahead of use. A context manager; leaving it ends all preparers."""

    def __init__(self, preparers: list[Preparer], room: int):
        """Start nothing yet.

        Args:
            preparers: each gets a thread.
            room: prepared scenes that may wait in the queue; every thread may hold one more.
        """
        self._preparers = preparers
        self._prepared: queue.Queue[PreparedScene | None] = queue.Queue(room)
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._working = len(preparers)
        self._failure: BaseException | None = None
        self._stopped = False
        self._num_prepared = 0
        self._busy = len(preparers)
        """Threads that do not wait for scenes."""
        self._waiting: set[threading.Thread] = set()
        """Threads that wait for scenes, for ever if the source neither returns a scene nor None."""
        self.times = PoolTimes()
        self.ended = False
        """No more scenes will come."""

    @property
    def size(self) -> int:
        """Number of threads."""
        return len(self._preparers)

    @property
    def starved(self) -> bool:
        """True if no scene is prepared or being prepared at present."""
        with self._lock:
            return self.ended or (not self._busy and self._prepared.empty())

    @property
    def deaths(self) -> int:
        """Number of worker processes that died so far."""
        return sum(preparer.deaths for preparer in self._preparers)

    def start(self, scenes: NextScene) -> None:
        """Begin to prepare."""
        for preparer in self._preparers:
            thread = threading.Thread(target=self._work, args=(preparer, scenes), daemon=True)
            thread.start()
            self._threads.append(thread)

    def take(self, *, wait_s: float | None = 0.0) -> PreparedScene | None:
        """Return the first prepared scene; None if there is none (yet, unless ``ended``).

        Args:
            wait_s: seconds to wait for a scene; None waits until a scene comes or none will.

        Raises:
            UnfuseError: the error that ended a thread.
        """
        while not self.ended:
            try:
                found = self._prepared.get(block=wait_s != 0, timeout=wait_s)
            except queue.Empty:
                return None
            if found is not None:
                with self._lock:
                    self._num_prepared -= 1
                return found
            self._working -= 1
            self.ended = not self._working
            if self._failure is not None:
                raise self._failure
        return None

    def close(self) -> None:
        """End preparers and threads; prepared scenes are lost.

        A thread that waits for a scene is left waiting; it ends with the next scene.
        """
        self._stopped = True
        for preparer in self._preparers:
            preparer.interrupt()
        for thread in self._threads:
            while thread.is_alive() and not self._waits(thread):
                with suppress(queue.Empty):
                    self._prepared.get_nowait()
                thread.join(0.01)
        for preparer in self._preparers:
            preparer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _waits(self, thread: threading.Thread) -> bool:
        with self._lock:
            return thread in self._waiting

    def _work(self, preparer: Preparer, scenes: NextScene) -> None:
        try:
            while (scene := self._next(scenes)) is not None and not self._stopped:
                prepared = preparer(scene)
                self._put(prepared)
        except BaseException as error:  # noqa: BLE001 - ``take`` raises it again
            self._failure = error
        finally:
            self._prepared.put(None)

    def _next(self, scenes: NextScene) -> SceneQuestions | None:
        started = time.perf_counter()
        thread = threading.current_thread()
        with self._lock:
            self._busy -= 1
            self._waiting.add(thread)
        try:
            scene = scenes()
        finally:
            with self._lock:
                self._waiting.remove(thread)
        with self._lock:
            self._busy += scene is not None
            self.times.waiting_for_scenes_s += time.perf_counter() - started
        return scene

    def _put(self, prepared: PreparedScene) -> None:
        started = time.perf_counter()
        with self._lock:
            self._num_prepared += 1
            self.times.most_prepared = max(self.times.most_prepared, self._num_prepared)
        self._prepared.put(prepared)
        with self._lock:
            self.times.load_s += prepared.load_s
            self.times.preprocess_s += prepared.preprocess_s
            self.times.waiting_for_room_s += time.perf_counter() - started
