"""Scenes in, prepared scenes out, never more than there is room for.

A thread for each way to prepare a scene: a worker process, or this one.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from unfuse.adapters.base import Front
from unfuse.throughput.scenes import Known, PreparedScene, Scene, prepare

NextScene = Callable[[], Scene | None]
"""The next scene, None when there is none; called by several threads, and may wait."""


class Preparer(Protocol):
    """One way to have scenes prepared, a scene at a time."""

    deaths: int
    """Processes that died of it so far."""

    def __call__(self, scene: Scene) -> PreparedScene:
        """Stages 1 and 2."""

    def interrupt(self) -> None:
        """Called by another thread: ends it soon, also while it is at work."""

    def close(self) -> None:
        """Frees what it holds, once it is no longer at work."""


class InThisProcess:
    """No process at all: for few scenes, and where a worker's start costs more than it saves."""

    deaths = 0

    def __init__(self, front: Front, known: Known | None = None):
        self._front = front
        self._known = known

    def __call__(self, scene: Scene) -> PreparedScene:
        """See ``prepare``."""
        return prepare(self._front, scene, self._known)

    def interrupt(self) -> None:
        """A scene takes no long time."""

    def close(self) -> None:
        """Nothing is held."""


@dataclass(slots=True)
class PoolTimes:
    """Seconds of all threads of a pool together."""

    load_s: float = 0.0
    preprocess_s: float = 0.0
    waiting_for_room_s: float = 0.0
    """A scene was prepared, and there was no place to put it."""
    waiting_for_scenes_s: float = 0.0
    """There was nothing to prepare."""
    most_prepared: int = 0
    """Prepared scenes at any one time, those in threads' hands among them."""


class Pool:
    """Prepares scenes ahead of whoever takes them. A context manager; leaving it ends all preparers."""

    def __init__(self, preparers: list[Preparer], room: int):
        """Starts nothing yet.

        Args:
            preparers: each gets a thread.
            room: prepared scenes that may wait to be taken; every thread may hold one more.
        """
        self._preparers = preparers
        self._prepared: queue.Queue[PreparedScene | None] = queue.Queue(room)
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._working = len(preparers)
        self._failure: BaseException | None = None
        self._stopped = False
        self._held = 0
        self._busy = len(preparers)
        """Threads that do not wait for scenes."""
        self._asking: set[threading.Thread] = set()
        """Those that do, for ever where nobody gives one or says that there is none."""
        self._times = PoolTimes()
        self.ended = False
        """Nothing will come any more."""

    @property
    def size(self) -> int:
        """Threads."""
        return len(self._preparers)

    @property
    def starved(self) -> bool:
        """Nothing is prepared and nothing is being prepared: there are no scenes, for now at least."""
        with self._lock:
            return self.ended or (not self._busy and self._prepared.empty())

    @property
    def deaths(self) -> int:
        """Worker processes that died so far."""
        return sum(preparer.deaths for preparer in self._preparers)

    @property
    def times(self) -> PoolTimes:
        """So far."""
        return self._times

    def start(self, scenes: NextScene) -> None:
        """Begins to prepare."""
        for preparer in self._preparers:
            thread = threading.Thread(target=self._work, args=(preparer, scenes), daemon=True)
            thread.start()
            self._threads.append(thread)

    def take(self, *, wait_s: float | None = 0.0) -> PreparedScene | None:
        """A prepared scene, whichever is first; None where there is none (yet, unless ``ended``).

        Args:
            wait_s: seconds to wait for one; None waits until there is one or will be none.

        Raises:
            UnfuseError: what ended a thread.
        """
        while not self.ended:
            try:
                found = self._prepared.get(block=wait_s != 0, timeout=wait_s)
            except queue.Empty:
                return None
            if found is not None:
                with self._lock:
                    self._held -= 1
                return found
            self._working -= 1
            self.ended = not self._working
            if self._failure is not None:
                raise self._failure
        return None

    def close(self) -> None:
        """Ends preparers and threads; what was prepared is lost.

        A thread that waits for a scene is left waiting: whatever it is given, it ends.
        """
        self._stopped = True
        for preparer in self._preparers:
            preparer.interrupt()
        for thread in self._threads:
            while thread.is_alive() and not self._asks(thread):
                with suppress(queue.Empty):
                    self._prepared.get_nowait()
                thread.join(0.01)
        for preparer in self._preparers:
            preparer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _asks(self, thread: threading.Thread) -> bool:
        with self._lock:
            return thread in self._asking

    def _work(self, preparer: Preparer, scenes: NextScene) -> None:
        try:
            while (scene := self._next(scenes)) is not None and not self._stopped:
                prepared = preparer(scene)
                self._put(prepared)
        except BaseException as error:  # noqa: BLE001 - raised again where scenes are taken
            self._failure = error
        finally:
            self._prepared.put(None)

    def _next(self, scenes: NextScene) -> Scene | None:
        begun = time.perf_counter()
        thread = threading.current_thread()
        with self._lock:
            self._busy -= 1
            self._asking.add(thread)
        try:
            scene = scenes()
        finally:
            with self._lock:
                self._asking.remove(thread)
        with self._lock:
            self._busy += scene is not None
            self._times.waiting_for_scenes_s += time.perf_counter() - begun
        return scene

    def _put(self, prepared: PreparedScene) -> None:
        begun = time.perf_counter()
        with self._lock:
            self._held += 1
            self._times.most_prepared = max(self._times.most_prepared, self._held)
        self._prepared.put(prepared)
        with self._lock:
            self._times.load_s += prepared.load_s
            self._times.preprocess_s += prepared.preprocess_s
            self._times.waiting_for_room_s += time.perf_counter() - begun
