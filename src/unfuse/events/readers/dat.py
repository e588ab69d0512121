"""Prophesee DAT: records of 8 bytes, time in microseconds and then 4 bits of polarity, 14 of y, 14 of x.

A header of lines that begin with ``%``, then one byte of event type (0 or 12: brightness changes) and one of their size
(Prophesee, "DAT format"). Times never go back, so that a binary search finds a window.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import numpy as np

from unfuse.errors import EventFileError
from unfuse.events.readers.raw import read_header
from unfuse.events.stream import EventStream, TimeWindow, empty_window, require_room

_RECORD: Final = np.dtype([("t", "<u4"), ("data", "<u4")])
_KINDS: Final = (0, 12)


def read_dat(path: Path, window: TimeWindow | None = None) -> EventStream:
    """Read a recording or a window of it.

    Raises:
        EventFileError: other events than brightness changes, or cut off.
        EventStreamError: invalid events, or none in the window.
    """
    header, start = read_header(path)
    with path.open("rb") as file:
        file.seek(start)
        kind = file.read(2)
    if len(kind) < 2 or kind[0] not in _KINDS or kind[1] != _RECORD.itemsize:
        found = f"event type and size {list(kind)}"
        raise EventFileError(str(path), found=found, expected="0 or 12 (brightness changes), and 8 bytes")
    start += 2
    size = path.stat().st_size - start
    if size % _RECORD.itemsize:
        raise EventFileError(str(path), found="a last event that is cut off", expected="whole events of 8 bytes")
    records = np.memmap(path, _RECORD, "r", start) if size else np.empty(0, _RECORD)
    first, last = 0, len(records)
    if window is not None:
        first, last = np.searchsorted(records["t"], [window.start_us, window.stop_us], side="left").tolist()
        if first >= last:
            raise empty_window(path, window, records["t"][[0, -1]].tolist() if len(records) else None)
    require_room(path, last - first)
    times, data = records["t"][first:last].astype(np.int64), records["data"][first:last].astype(np.int64)
    return EventStream.from_arrays(
        data & 0x3FFF,
        (data >> 14) & 0x3FFF,
        times,
        (data >> 28) & 0xF,
        sensor_size=_geometry(header),
        source=str(path),
    )


def _geometry(header: list[str]) -> tuple[int, int] | None:
    text = "\n".join(header)
    width, height = (re.search(rf"(?m)^% {name} (\d{{1,5}})$", text) for name in ("Width", "Height"))
    return (int(width[1]), int(height[1])) if width and height else None
