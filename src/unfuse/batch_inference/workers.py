"""Worker processes that load and preprocess scenes, as the process that waits for them sees them.

A worker has one scene at a time, so that the scene that killed it is known. A first death may be the machine's fault
(memory): a new worker tries the scene again. A second death is the scene's fault.
"""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Self

from unfuse.adapters.base import Preprocessor
from unfuse.batch_inference.pool import InProcessPreparer, Pool
from unfuse.batch_inference.scenes import FeatureLookup, PreparedScene, SceneQuestions, failed_scene
from unfuse.batch_inference.wire import receive, send
from unfuse.batch_inference.worker import QUIET
from unfuse.errors import CheckpointError, DeviceError
from unfuse.processes import Channel, ChannelError, Child, ClosedError, LateError
from unfuse.unavailable import Unavailable

_TRIES: Final = 2
SCENE_SECONDS: Final = 600.0
"""Limit for one scene. A recording of 200 million events takes some 30 s."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerSettings:
    """Options of worker processes."""

    lookup: FeatureLookup | None = None
    """As for ``prepare``; it pickles."""
    pinned: bool = False
    """Whether tensors are received into pinned memory."""
    scene_seconds: float = SCENE_SECONDS
    """Limit for one scene; the scene then fails with its worker. A file system may never answer."""


class WorkerHost:
    """The process that forks workers, started again when it dies. A context manager; leaving it ends it."""

    def __init__(self, model: str, dtype: str):
        """Start the process, without waiting until it is ready.

        Args:
            model: as for ``open_preprocessor``.
            dtype: as for ``open_preprocessor``.
        """
        self._arguments = model, dtype
        self._lock = threading.Lock()
        self._start()

    def wait(self) -> None:
        """Wait until workers can be forked; errors as ``worker``."""
        with self._lock:
            self._wait()

    def worker(self) -> Channel:
        """Return the channel to a new worker; waits until the host is ready.

        Raises:
            CheckpointError: the model's preprocessor cannot be opened.
            DeviceError: the process does not start.
        """
        with self._lock:
            self._wait()
            ours, theirs = socket.socketpair()
            with theirs:
                try:
                    socket.send_fds(self._child.channel.socket, [b"w"], [theirs.fileno()])
                except OSError:
                    # The process died, perhaps for lack of memory. One more start; its failure is raised.
                    self._end()
                    self._start()
                    self._wait()
                    socket.send_fds(self._child.channel.socket, [b"w"], [theirs.fileno()])
            return Channel(ours)

    def close(self) -> None:
        """End the process; a second call does nothing."""
        self._child.kill()  # first, because a thread that holds the lock may wait for the process
        with self._lock:
            self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._ready = False
        self._child = Child(
            "unfuse.batch_inference.worker", self._arguments, env={**os.environ, **QUIET}, output=self._output
        )

    def _wait(self) -> None:
        if self._ready:
            return
        try:
            unavailable: Unavailable | None = receive(self._child.channel)
        except ClosedError:
            self._output.seek(0)
            lines = self._output.read().decode(errors="replace").strip().splitlines()
            raise DeviceError(
                "workers", found=f"a process that does not start ({lines[-1] if lines else 'no message'})",
                expected="a process that loads samples", fix="try --workers 0",
            ) from None  # fmt: skip
        if unavailable is not None:
            raise CheckpointError(unavailable.reason)
        self._ready = True

    def _end(self) -> None:
        self._child.close()
        self._output.close()


class WorkerProcess:
    """One worker of a host, replaced when it dies."""

    def __init__(self, host: WorkerHost, settings: WorkerSettings | None = None):
        """Start nothing yet; the host forks the worker for the first scene."""
        self._host = host
        self._settings = settings or WorkerSettings()
        self._channel: Channel | None = None
        self._pid = 0
        self._closed = False
        self.deaths = 0

    def __call__(self, scene: SceneQuestions) -> PreparedScene:
        """See ``prepare``."""
        for _ in range(_TRIES):
            try:
                if self._channel is None:
                    self._channel = self._forked()
                send(self._channel, (scene, self._settings.lookup))
                prepared: PreparedScene = receive(self._channel, pinned=self._settings.pinned)
            except ChannelError as error:
                late = isinstance(error, LateError)
                if late and self._pid:
                    with suppress(ProcessLookupError):
                        os.kill(self._pid, signal.SIGKILL)
                self.close()
                self._channel, self._pid = None, 0
                if self._closed:
                    return failed_scene(scene.questions, "the run was ended")
                self.deaths += 1
                if late:
                    limit = f"{self._settings.scene_seconds:g} s to load and preprocess (--scene-seconds)"
                    return failed_scene(scene.questions, f"it took longer than {limit}")
            else:
                return prepared
        return failed_scene(scene.questions, f"its worker process died of it {_TRIES} times")

    def _forked(self) -> Channel:
        channel = self._host.worker()
        channel.limit_silence(self._settings.scene_seconds)
        try:
            self._pid = receive(channel)
        except ChannelError:
            channel.close()
            raise
        return channel

    def interrupt(self) -> None:
        """Wake the thread that waits for the worker."""
        self._closed = True
        if (channel := self._channel) is not None:
            channel.shut_down()

    def close(self) -> None:
        """Close the channel; the worker then ends."""
        if self._channel is not None:
            self._channel.close()


def open_pool(
    preprocessor: Preprocessor,
    host: WorkerHost | None,
    count: int,
    *,
    room: int,
    settings: WorkerSettings | None = None,
) -> Pool:
    """Return a pool of worker processes, or of one thread of this process without a host.

    Args:
        preprocessor: of this process.
        host: forks the workers.
        count: workers.
        room: as for ``Pool``.
        settings: of the workers; a thread cannot be ended after ``scene_seconds``.
    """
    settings = settings or WorkerSettings()
    if host is None:
        return Pool([InProcessPreparer(preprocessor, settings.lookup)], room)
    return Pool([WorkerProcess(host, settings) for _ in range(count)], room)


def default_workers(device: Any, devices: int = 1) -> int:
    """Return the number of worker processes for one device.

    Each has a core, and one core is left for the thread that feeds the device. A model on the CPU needs all cores.
    """
    if device.type != "cuda":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(16, cores // devices - 1))
