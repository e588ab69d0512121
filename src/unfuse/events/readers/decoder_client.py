"""Client of the decoders' process (``python -m unfuse.decoders``); the client does not trust the process.

One process decodes every file. After a crash, a hang or a breach of its memory limit, the file at fault gets an error
of one line, and the next file a new process.
"""

from __future__ import annotations

import atexit
import mmap
import os
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from unfuse.errors import EventFileError, MissingPackageError
from unfuse.events.stream import MAX_EVENTS, EventStream, TimeWindow, empty_window, require_room
from unfuse.extras import install_command
from unfuse.processes import Child, ChildError, ChildSlot

MEMORY_BYTES: Final = 4 << 30
SILENCE_SECONDS: Final = 60.0
"""Without a batch or a reply for so long, the process hangs."""
_EXTRAS: Final = {"dsec": "dsec", "rectify_map": "dsec", "evt3": "cameras", "aedat4": "cameras"}
_NAMES: Final = {
    "dsec": "DSEC events.h5",
    "rectify_map": "DSEC rectify_map.h5",
    "evt3": "Prophesee RAW (EVT3)",
    "aedat4": "iniVation AEDAT4",
}
_COLUMNS: Final[dict[str, np.dtype[Any]]] = {
    "x": np.dtype(np.int32),
    "y": np.dtype(np.int32),
    "t": np.dtype(np.int64),
    "p": np.dtype(np.int8),
}
_EVENT_BYTES: Final = sum(dtype.itemsize for dtype in _COLUMNS.values())


def decode(kind: str, path: Path, window: TimeWindow | None, sensor_size: tuple[int, int] | None = None) -> EventStream:
    """Have a file decoded, and validate the events.

    Args:
        kind: "dsec", "evt3" or "aedat4".
        path: the file.
        window: a part of the recording; None is all.
        sensor_size: (width, height) if the caller knows it; else the decoder's, checked against the events.

    Raises:
        MissingPackageError: the library is not installed; names the extra.
        EventFileError: the library cannot read the file, crashed on it, or took too much memory or time.
        EventStreamError: the events are not a valid stream, or none of them lies in the window.
    """
    edges = (None, None) if window is None else (window.start_us, window.stop_us)
    columns, reply = _request(kind, path, {"start": edges[0], "stop": edges[1]})
    if not len(columns["t"]) and window is not None:
        raise empty_window(path, window, reply.get("span"))
    return _stream(kind, path, columns, reply, sensor_size)


def decode_events(path: Path, first: int, last: int) -> EventStream:
    """Return events ``first`` to ``last`` of a DSEC recording, by their number; errors as ``decode``."""
    columns, reply = _request("dsec", path, {"start": first, "stop": last, "numbered": True})
    return _stream("dsec", path, columns, reply, None)


def _stream(
    kind: str, path: Path, columns: dict[str, NDArray[Any]], reply: dict[str, Any], size: tuple[int, int] | None
) -> EventStream:
    """Validate events; a DSEC file without the size of its sensor has DSEC's sensor, or the reach of the events."""
    stated = size or reply.get("sensor_size")
    stream = EventStream.from_arrays(**columns, sensor_size=tuple(stated) if stated else None, source=str(path))
    if stated or kind != "dsec":
        return stream
    reach = int(stream.x.max()) + 1, int(stream.y.max()) + 1
    usual = tuple(reply.get("usual_size") or (0, 0))
    if reach[0] <= usual[0] and reach[1] <= usual[1]:
        return replace(stream, sensor_size=(usual[0], usual[1]))
    note = f"the file does not state the sensor's size; {reach[0]} x {reach[1]}, the reach of the events, is used"
    return replace(stream, sensor_size=reach, notes=(note,))


def inspect(path: Path, edges: Sequence[int] = (), numbers: Sequence[int] = ()) -> dict[str, Any]:
    """Return facts of a DSEC recording as ``decoders.dsec.inspect`` does; errors as ``decode``."""
    return _request("dsec", path, {"edges": list(edges), "numbers": list(numbers)})[1]


def decode_table(kind: str, path: Path) -> tuple[dict[str, NDArray[Any]], tuple[int, int]]:
    """Return the columns of a file with one row for each pixel of a sensor (width, height); errors as ``decode``."""
    columns, reply = _request(kind, path, {"start": None, "stop": None})
    width, height = (int(length) for length in reply["sensor_size"])
    if len(columns["t"]) != width * height:
        raise EventFileError(str(path), found=f"{len(columns['t'])} pixels", expected=f"{width * height}")
    return columns, (width, height)


class _Decoder(Child):
    """The process, and the file that it writes columns into: a file is twice as fast as a socket."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - lives as long as the process
        number = self._file.fileno()
        super().__init__(
            "unfuse.decoders",
            (str(MEMORY_BYTES), str(MAX_EVENTS * _EVENT_BYTES), str(number)),
            # The memory limit would count the address space that the threads of a BLAS reserve.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            files=(number,),
        )
        self.channel.limit_silence(SILENCE_SECONDS)

    def columns(self, lengths: Sequence[int]) -> dict[str, NDArray[Any]]:
        """Copy the columns of consecutive batches out of the file; mapped, because reading it takes twice as long."""
        total = sum(lengths)
        columns = {name: np.empty(total, dtype) for name, dtype in _COLUMNS.items()}
        if not total:
            return columns
        # Fails if the file is shorter than announced.
        with mmap.mmap(self._file.fileno(), total * _EVENT_BYTES, access=mmap.ACCESS_READ) as view:
            start = at = 0
            for length in lengths:
                for column in columns.values():
                    column[start : start + length] = np.frombuffer(view, column.dtype, length, at)
                    at += length * column.itemsize
                start += length
        return columns

    def close(self) -> None:
        super().close()
        self._file.close()


_lock: Final = threading.Lock()
_slot: Final = ChildSlot(_Decoder)
atexit.register(_slot.close)


def _request(kind: str, path: Path, request: dict[str, Any]) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return the columns of all events, and the last message."""
    try:
        with _lock, _slot.exchange() as decoder:
            decoder.channel.send_json({"kind": kind, "path": str(path.resolve()), **request})
            lengths: list[int] = []
            events = 0
            while "batch" in (reply := decoder.channel.receive_json()[0]):
                lengths.append(max(int(reply["batch"]), 0))
                events += lengths[-1]
                require_room(path, events)
            columns = decoder.columns(lengths)
    except ChildError as error:
        raise EventFileError(
            str(path), found=f"a file on which its decoder {error}", expected=f"an undamaged {_NAMES[kind]} file"
        ) from None
    _raise_reply(kind, path, reply)
    return columns, reply


def _raise_reply(kind: str, path: Path, reply: dict[str, Any]) -> None:
    if "missing" in reply:
        raise MissingPackageError(
            f"{path}: {_NAMES[kind]}",
            found=f"no package {reply['missing']}",
            expected="this package, to read such a file",
            fix=f"run: {install_command(f'unfuse[{_EXTRAS[kind]}]')}",
        )
    if "refused" in reply:
        raise EventFileError(str(path), found=reply["refused"], expected=reply["expected"])
    if "failed" in reply:
        raise EventFileError(
            str(path),
            found=f"an unreadable {_NAMES[kind]} file ({reply['failed']})",
            expected="an undamaged file",
        )
