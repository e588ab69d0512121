"""Workers as who waits for them sees them: scenes out, prepared scenes in, never more than there is room for.

A thread a worker hands it one scene at a time, so that it is known whose scene a worker died of. Dying once may be the
machine's fault (memory), and the scene is tried again with a new worker; dying twice is the scene's.
"""

from __future__ import annotations

import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol, Self

from unfuse.adapters.base import Front
from unfuse.errors import CheckpointError, DeviceError
from unfuse.throughput.scenes import PreparedScene, Scene, failed_scene, prepare
from unfuse.throughput.wire import Closed, receive, send
from unfuse.throughput.worker import QUIET

NextScene = Callable[[], Scene | None]
"""The next scene, None when there is none; called by several threads, and may wait."""

_TRIES: Final = 2


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

    def __init__(self, front: Front):
        self._front = front

    def __call__(self, scene: Scene) -> PreparedScene:
        """See ``prepare``."""
        return prepare(self._front, scene)

    def interrupt(self) -> None:
        """A scene takes no long time."""

    def close(self) -> None:
        """Nothing is held."""


class WorkerHost:
    """The process that forks workers. A context manager; leaving it ends them all."""

    def __init__(self, model: str, dtype: str):
        """Starts it, and does not wait until it is ready.

        Args:
            model: as for ``open_front``.
            dtype: as for ``open_front``.
        """
        self._arguments = model, dtype
        self._lock = threading.Lock()
        self._begin()

    def wait(self) -> None:
        """Until workers can be had; errors as ``worker``."""
        with self._lock:
            self._wait()

    def worker(self) -> socket.socket:
        """A new worker's socket; waits until the first one can be had.

        Raises:
            CheckpointError: the model's front cannot be opened.
            DeviceError: the process does not start.
        """
        with self._lock:
            self._wait()
            mine, theirs = socket.socketpair()
            try:
                socket.send_fds(self._control, [b"w"], [theirs.fileno()])
            except OSError:
                # The system took it, for its memory say; one more start, and whoever fails then is told.
                self._end()
                self._begin()
                self._wait()
                socket.send_fds(self._control, [b"w"], [theirs.fileno()])
            finally:
                theirs.close()
            return mine

    def close(self) -> None:
        """Ends it; a second call does nothing."""
        self._process.kill()  # at once: who holds the lock may be waiting for it
        with self._lock:
            self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self) -> None:
        self._control, theirs = socket.socketpair()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._ready = False
        # Where this process found its modules, that one finds them too.
        path = os.pathsep.join(filter(None, sys.path))
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "unfuse.throughput.worker", str(theirs.fileno()), *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=self._said,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, **QUIET, "PYTHONPATH": path},
            )

    def _wait(self) -> None:
        if self._ready:
            return
        try:
            reason = receive(self._control)
        except Closed:
            self._said.seek(0)
            lines = self._said.read().decode(errors="replace").strip().splitlines()
            raise DeviceError(
                "workers", found=f"a process that does not start ({lines[-1] if lines else 'it says nothing'})",
                expected="one that loads samples", fix="try --workers 0",
            ) from None  # fmt: skip
        if reason is not None:
            raise CheckpointError(reason)
        self._ready = True

    def _end(self) -> None:
        self._control.close()
        self._process.kill()
        self._process.wait()
        self._said.close()


class WorkerProcess:
    """One worker of a host, replaced when it dies."""

    def __init__(self, host: WorkerHost, *, pinned: bool):
        """For a pool.

        Args:
            host: forks it.
            pinned: put what it sends into pinned memory.
        """
        self._host = host
        self._pinned = pinned
        self._socket: socket.socket | None = None
        self._closed = False
        self.deaths = 0

    def __call__(self, scene: Scene) -> PreparedScene:
        """See ``prepare``."""
        for _ in range(_TRIES):
            if self._socket is None:
                self._socket = self._host.worker()
            try:
                send(self._socket, scene)
                prepared: PreparedScene = receive(self._socket, pinned=self._pinned)
            except Closed:
                self._socket.close()
                self._socket = None
                if self._closed:
                    return failed_scene(scene.asked, "the run was ended")
                self.deaths += 1
            else:
                return prepared
        return failed_scene(scene.asked, f"its worker process died of it {_TRIES} times")

    def interrupt(self) -> None:
        """Wakes the thread that waits for it."""
        self._closed = True
        if (place := self._socket) is not None:
            with suppress(OSError):
                place.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """The worker ends once it sees that nobody listens."""
        if self._socket is not None:
            self._socket.close()


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
        """Ends preparers and threads; what was prepared is lost."""
        self._stopped = True
        for preparer in self._preparers:
            preparer.interrupt()
        for thread in self._threads:
            while thread.is_alive():
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
        with self._lock:
            self._busy -= 1
        scene = scenes()
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


def open_pool(front: Front, host: WorkerHost | None, count: int, *, room: int, pinned: bool = False) -> Pool:
    """A pool of worker processes, or of one thread of this process where there is no host.

    Args:
        front: of this process.
        host: forks the workers.
        count: workers.
        room: as for ``Pool``.
        pinned: as for ``WorkerProcess``.
    """
    if host is None:
        return Pool([InThisProcess(front)], room)
    return Pool([WorkerProcess(host, pinned=pinned) for _ in range(count)], room)


def default_workers(device: Any, devices: int = 1) -> int:
    """Worker processes for one device.

    A core each, one left for the thread that feeds the device. None beside a model on the CPU, which wants all cores.
    """
    if device.type != "cuda":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(16, cores // devices - 1))
