"""Workers as who waits for them sees them: processes that load and preprocess, each replaced when it dies.

A worker is handed one scene at a time, so that it is known whose scene it died of. Dying once may be the machine's
fault (memory), and the scene is tried again with a new worker; dying twice is the scene's.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

from unfuse.adapters.base import Front
from unfuse.errors import CheckpointError, DeviceError
from unfuse.throughput.pool import InThisProcess, Pool
from unfuse.throughput.scenes import Known, PreparedScene, Scene, failed_scene
from unfuse.throughput.wire import Closed, receive, send
from unfuse.throughput.worker import QUIET

_TRIES: Final = 2
SCENE_SECONDS: Final = 600.0
"""For one scene. A recording of 200 million events takes some 30 s."""
_TIMEVAL: Final = struct.Struct("@ll")


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

    def __init__(
        self,
        host: WorkerHost,
        known: Known | None = None,
        *,
        pinned: bool = False,
        scene_seconds: float = SCENE_SECONDS,
    ):
        """For a pool.

        Args:
            host: forks it.
            known: as for ``prepare``; it pickles.
            pinned: put what it sends into pinned memory.
            scene_seconds: after which it is ended, and the scene has failed: a file system may never answer.
        """
        self._host = host
        self._known = known
        self._pinned = pinned
        self._scene_seconds = scene_seconds
        self._socket: socket.socket | None = None
        self._pid = 0
        self._closed = False
        self.deaths = 0

    def __call__(self, scene: Scene) -> PreparedScene:
        """See ``prepare``."""
        for _ in range(_TRIES):
            begun = time.monotonic()
            try:
                if self._socket is None:
                    self._socket = self._forked()
                send(self._socket, (scene, self._known))
                prepared: PreparedScene = receive(self._socket, pinned=self._pinned)
            except Closed:
                late = time.monotonic() - begun >= self._scene_seconds
                if late and self._pid:
                    with suppress(ProcessLookupError):
                        os.kill(self._pid, signal.SIGKILL)
                self.close()
                self._socket, self._pid = None, 0
                if self._closed:
                    return failed_scene(scene.asked, "the run was ended")
                self.deaths += 1
                if late:
                    reason = f"it took longer than {self._scene_seconds:g} s to load and preprocess (--scene-seconds)"
                    return failed_scene(scene.asked, reason)
            else:
                return prepared
        return failed_scene(scene.asked, f"its worker process died of it {_TRIES} times")

    def _forked(self) -> socket.socket:
        place = self._host.worker()
        # The kernel's own limit: Python's would make every read of a large tensor several.
        whole, part = divmod(self._scene_seconds, 1)
        place.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(int(whole), int(part * 1e6)))
        try:
            self._pid = receive(place)
        except Closed:
            place.close()
            raise
        return place

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


def open_pool(
    front: Front,
    host: WorkerHost | None,
    count: int,
    *,
    room: int,
    known: Known | None = None,
    pinned: bool = False,
    scene_seconds: float = SCENE_SECONDS,
) -> Pool:
    """A pool of worker processes, or of one thread of this process where there is no host.

    Args:
        front: of this process.
        host: forks the workers.
        count: workers.
        room: as for ``Pool``.
        known: as for ``prepare``; it pickles.
        pinned: as for ``WorkerProcess``.
        scene_seconds: as for ``WorkerProcess``; a thread cannot be ended.
    """
    if host is None:
        return Pool([InThisProcess(front, known)], room)
    return Pool([WorkerProcess(host, known, pinned=pinned, scene_seconds=scene_seconds) for _ in range(count)], room)


def default_workers(device: Any, devices: int = 1) -> int:
    """Worker processes for one device.

    A core each, one left for the thread that feeds the device. None beside a model on the CPU, which wants all cores.
    """
    if device.type != "cuda":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(16, cores // devices - 1))
