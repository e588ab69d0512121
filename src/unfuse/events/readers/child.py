"""The end of the decoders' process that does not trust it: starts it, limits it, and takes what it wrote.

One process serves this one for as long as it behaves; after an abort, a hang or a breach of its memory there is a new
one, and the file at fault gets one line.
"""

from __future__ import annotations

import atexit
import json
import mmap
import os
import selectors
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from unfuse.errors import EventFileError, EventStreamError, MissingPackageError
from unfuse.events.stream import MAX_EVENTS, EventStream, TimeWindow
from unfuse.extras import install_command

MEMORY_BYTES: Final = 4 << 30
SILENCE_SECONDS: Final = 60.0
"""Without a batch or a reply for so long, it hangs."""
_EXTRAS: Final = {"dsec": "dsec", "rectify_map": "dsec", "evt3": "cameras", "aedat4": "cameras"}
_NAMES: Final = {
    "dsec": "DSEC events.h5",
    "rectify_map": "DSEC rectify_map.h5",
    "evt3": "Prophesee RAW (EVT3)",
    "aedat4": "iniVation AEDAT4",
}
_COLUMNS: Final = (
    (np.dtype(np.int32), "x"),
    (np.dtype(np.int32), "y"),
    (np.dtype(np.int64), "t"),
    (np.dtype(np.int8), "p"),
)
_EVENT_BYTES: Final = sum(dtype.itemsize for dtype, _ in _COLUMNS)


def decode(kind: str, path: Path, window: TimeWindow | None, sensor_size: tuple[int, int] | None = None) -> EventStream:
    """Has a file decoded and validates what comes back.

    Args:
        kind: "dsec", "evt3" or "aedat4".
        path: the file.
        window: only this stretch; None is all.
        sensor_size: (width, height) where the caller knows it; else the decoder's word is taken, and checked.

    Raises:
        MissingPackageError: the library is not installed; names the extra.
        EventFileError: the library cannot read the file, crashed on it, or took too much memory or time.
        EventStreamError: what it read is not a valid stream, or none of it lies in the window.
    """
    edges = (None, None) if window is None else (window.start_us, window.stop_us)
    columns, reply = _ask(kind, path, {"start": edges[0], "stop": edges[1]})
    if not len(columns["t"]) and window is not None:
        span = reply.get("span")
        raise EventStreamError(
            f"{path}, window [{window.start_us}, {window.stop_us}) us",
            found="no events",
            expected=f"a stretch of the recording's {span[0]} to {span[1]} us" if span else "a stretch with events",
        )
    size = sensor_size or reply.get("sensor_size")
    return EventStream.from_arrays(**columns, sensor_size=tuple(size) if size else None, source=str(path))


def decode_events(path: Path, first: int, last: int) -> EventStream:
    """Events ``first`` to ``last`` of a DSEC recording, by their number; errors as ``decode``."""
    columns, reply = _ask("dsec", path, {"start": first, "stop": last, "numbered": True})
    return EventStream.from_arrays(**columns, sensor_size=tuple(reply["sensor_size"]), source=str(path))


def look(path: Path, edges: Sequence[int] = (), numbers: Sequence[int] = ()) -> dict[str, Any]:
    """Facts of a DSEC recording, as ``decoders.dsec.look`` gives them; errors as ``decode``."""
    return _ask("dsec", path, {"edges": list(edges), "numbers": list(numbers)})[1]


def decode_table(kind: str, path: Path) -> tuple[dict[str, NDArray[Any]], tuple[int, int]]:
    """Columns of a file that holds no stream, one row a pixel of a sensor (width, height); errors as ``decode``."""
    columns, reply = _ask(kind, path, {"start": None, "stop": None})
    width, height = (int(length) for length in reply["sensor_size"])
    if len(columns["t"]) != width * height:
        raise EventFileError(str(path), found=f"{len(columns['t'])} pixels", expected=f"{width * height}")
    return columns, (width, height)


def _ask(kind: str, path: Path, request: dict[str, Any]) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    with _lock:
        process = _running()
        try:
            lengths, reply = process.ask({"kind": kind, "path": str(path.resolve()), **request})
            columns = process.columns(lengths)
        except _StoppedError as stopped:
            _stop()
            raise EventFileError(
                str(path), found=f"a file on which its decoder {stopped}", expected=f"an undamaged {_NAMES[kind]} file"
            ) from None
    _raise_reply(kind, path, reply)
    return columns, reply


class _StoppedError(Exception):
    """The process is gone or of no more use."""


class _Process:
    """A running decoder process and the file that it writes to."""

    def __init__(self, memory: int) -> None:
        self.owner = os.getpid()
        self._said = b""
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
        fd = self._file.fileno()
        limits = (str(fd), str(memory), str(MAX_EVENTS * _EVENT_BYTES))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "unfuse.decoders", *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(fd,),
            # The address space that threads of a BLAS reserve would be taken for theirs; none is needed.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

    def ask(self, request: dict[str, Any]) -> tuple[list[int], dict[str, Any]]:
        """Lengths of the batches written, and the last reply."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        lengths: list[int] = []
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
            while True:
                reply = json.loads(self._line(stdout))
                if reply.keys() != {"events"}:
                    return lengths, reply
                lengths.append(int(reply["events"]))
        except (BrokenPipeError, ValueError):
            raise _StoppedError(self._end()) from None

    def columns(self, lengths: list[int]) -> dict[str, NDArray[Any]]:
        """What was written, in one piece."""
        total = sum(lengths)
        columns = {name: np.empty(total, dtype) for dtype, name in _COLUMNS}
        if not total:
            return columns
        if os.fstat(self._file.fileno()).st_size < total * _EVENT_BYTES:
            raise _StoppedError("wrote less than it said")
        with mmap.mmap(self._file.fileno(), total * _EVENT_BYTES, access=mmap.ACCESS_READ) as view:
            start = at = 0
            for length in lengths:
                for dtype, name in _COLUMNS:
                    columns[name][start : start + length] = np.frombuffer(view, dtype, length, at)
                    at += length * dtype.itemsize
                start += length
        return columns

    def stop(self) -> None:
        """Ends it at once."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._file.close()

    def _line(self, stdout: IO[bytes]) -> bytes:
        deadline = time.monotonic() + SILENCE_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while b"\n" not in self._said:
                if not selector.select(max(deadline - time.monotonic(), 0.0)):
                    raise _StoppedError(f"said nothing for {SILENCE_SECONDS:g} s")
                part = os.read(stdout.fileno(), 1 << 16)
                if not part:
                    raise _StoppedError(self._end())
                self._said += part
        line, _, self._said = self._said.partition(b"\n")
        return line

    def _end(self) -> str:
        try:
            code = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return "gave no sensible reply"
        return f"crashed (signal {-code})" if code < 0 else f"ended (exit code {code})"


_lock: Final = threading.Lock()
_kept: list[_Process] = []


def _running() -> _Process:
    """The process, or a new one; never that of the process this one was forked from."""
    if _kept and _kept[0].owner != os.getpid():
        _kept.clear()
    if not _kept:
        _kept.append(_Process(MEMORY_BYTES))
    return _kept[0]


@atexit.register
def _stop() -> None:
    while _kept:
        process = _kept.pop()
        if process.owner == os.getpid():
            process.stop()


def _raise_reply(kind: str, path: Path, reply: dict[str, Any]) -> None:
    if "missing" in reply:
        raise MissingPackageError(
            f"{path}: {_NAMES[kind]}",
            found=f"no package {reply['missing']}",
            expected="it, to read such a file",
            fix=f"run: {install_command(f'unfuse[{_EXTRAS[kind]}]')}",
        )
    if "refused" in reply:
        raise EventFileError(str(path), found=reply["refused"], expected=reply["expected"])
    if "failed" in reply:
        raise EventFileError(
            str(path),
            found=f"an unreadable {_NAMES[kind]} file ({reply['failed']})",
            expected="an undamaged one",
        )
