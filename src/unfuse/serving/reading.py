"""The end of the readers' processes that does not trust them: starts, limits, asks and ends them.

A process serves as long as it behaves; after a crash, a hang or a breach of its memory the file at fault gets one line
and the next file a new process.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from unfuse.errors import MediaError
from unfuse.serving.kinds import Takes
from unfuse.stages import DEFAULT_QUESTION, Loaded

MEMORY_BYTES: Final = 4 << 30
FILE_BYTES: Final = 2 << 30
"""What a decoder may write on the way: some 100 million events."""
_MAX_REPLY: Final = 1 << 30
_PASSED_ON: Final = (
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "XDG_CACHE_HOME", "UNFUSE_CACHE",
    "NUMBA_CACHE_DIR",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Read:
    """A file turned into frames."""

    loaded: Loaded
    pictures: tuple[bytes, ...]
    """PNG, one a frame, to be looked at."""
    load_ms: float
    """What the ``load`` stage took in the process that read."""


class Readers:
    """A few processes, each for one file at a time. Safe for several threads."""

    def __init__(self, count: int, seconds: float):
        """Starts nothing yet.

        Args:
            count: processes at most.
            seconds: for one file.
        """
        self._seconds = seconds
        self._free: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(count):
            self._free.put(None)
        self._closed = False

    def read(self, paths: Sequence[Path], takes: Takes) -> Read:
        """Has files of one scene read; blocks.

        Raises:
            MediaError: they cannot be read, or took too long; says why in one line without the files' places.
        """
        process = self._free.get()
        try:
            if process is not None and not process.alive:
                process.stop()
                process = None
            if process is None:
                process = _Process()
            return process.read(paths, takes, time.monotonic() + self._seconds)
        except _StoppedError as stopped:
            assert process is not None
            process.stop()
            process = None
            raise MediaError("upload", found=f"a file on which its reader {stopped}", expected="a sound one") from None
        finally:
            if self._closed and process is not None:
                process.stop()
                process = None
            self._free.put(process)

    def warm(self) -> None:
        """Starts one process, so that the first file need not wait for it."""
        process = self._free.get()
        self._free.put(process or _Process())

    def close(self) -> None:
        """Ends those that are idle; one at work ends with it."""
        self._closed = True
        idle: list[_Process | None] = []
        try:
            while True:
                idle.append(self._free.get_nowait())
        except queue.Empty:
            pass
        for process in idle:
            if process is not None:
                process.stop()
            self._free.put(None)


class _StoppedError(Exception):
    """The process is gone or of no more use."""


class _Process:
    """One running reader, in a group of its own: what it starts ends with it."""

    def __init__(self) -> None:
        self._said = bytearray()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "unfuse.serving.reader", str(MEMORY_BYTES), str(FILE_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={
                **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
                # The address space that threads of a BLAS reserve would be taken for theirs; none is needed.
                "OPENBLAS_NUM_THREADS": "1",
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
        )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def read(self, paths: Sequence[Path], takes: Takes, deadline: float) -> Read:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        request = {"paths": [str(path) for path in paths], "takes": takes}
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
            reply = json.loads(self._take_line(stdout, deadline))
            blobs = [self._take(stdout, int(size), deadline) for size in reply["sizes"]]
            if "refused" in reply:
                raise MediaError(str(reply["refused"]))
            return _read_of(reply, blobs)
        except (BrokenPipeError, ValueError, KeyError, TypeError):
            raise _StoppedError(self._end()) from None

    def stop(self) -> None:
        """Ends it and what it started at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def _take_line(self, stdout: IO[bytes], deadline: float) -> bytes:
        while (end := self._said.find(b"\n")) < 0:
            self._more(stdout, deadline)
        return self._cut(end + 1)

    def _take(self, stdout: IO[bytes], size: int, deadline: float) -> bytes:
        if not 0 <= size <= _MAX_REPLY:
            raise _StoppedError("gave no sensible reply")
        while len(self._said) < size:
            self._more(stdout, deadline)
        return self._cut(size)

    def _cut(self, size: int) -> bytes:
        part = bytes(memoryview(self._said)[:size])
        del self._said[:size]
        return part

    def _more(self, stdout: IO[bytes], deadline: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            if not selector.select(max(deadline - time.monotonic(), 0.0)):
                raise _StoppedError("took too long")
        part = os.read(stdout.fileno(), 1 << 20)
        if not part:
            raise _StoppedError(self._end())
        self._said += part

    def _end(self) -> str:
        try:
            code = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return "gave no sensible reply"
        return f"crashed (signal {-code})" if code < 0 else f"ended (exit code {code})"


def _read_of(reply: dict[str, Any], blobs: Sequence[bytes]) -> Read:
    shapes = [tuple(int(length) for length in shape) for shape in reply["shapes"]]
    count = len(shapes)
    if len(blobs) != 2 * count:
        raise ValueError("not as many frames as shapes")
    frames = [np.frombuffer(blob, np.uint8).reshape(shape) for blob, shape in zip(blobs[:count], shapes, strict=True)]
    loaded = Loaded(
        frames=frames,
        media=str(reply["media"]),
        media_sha256=str(reply["media_sha256"]),
        question=DEFAULT_QUESTION,
        num_events=reply["num_events"],
        notes=tuple(str(note) for note in reply["notes"]),
    )
    return Read(loaded=loaded, pictures=tuple(blobs[count:]), load_ms=float(reply["load_ms"]))
