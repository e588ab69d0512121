"""Prophesee RAW: EVT2, decoded here, and EVT3, decoded by a library in a process of its own.

Header lines that begin with ``%`` state the version. EVT2 is a list of 32-bit words (Prophesee, "EVT 2.0 format"):

    bits 31-28   0 darker, 1 brighter, 8 time high; others carry no events
    brightness   27-22 low 6 bits of the time in microseconds, 21-11 x, 10-0 y
    time high    27-0 the bits above these
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from unfuse.compiled import compiled
from unfuse.errors import EventFileError
from unfuse.events.readers import decoder_client
from unfuse.events.stream import EventStream, TimeWindow, empty_window, require_room

_BLOCK: Final = 1 << 22
"""Words in one call."""
_MAX_HEADER: Final = 1 << 16


def read_raw(path: Path, window: TimeWindow | None = None) -> EventStream:
    """Read a recording or a window of it.

    Raises:
        EventFileError: another version, no header, or words that are no events.
        EventStreamError: invalid events, or none in the window.
        MissingPackageError: EVT3 without its library.
    """
    header, start = read_header(path)
    version = _version(header)
    size = _geometry(header)
    if version == "3.0":
        return decoder_client.decode("evt3", path, window, size)
    if version != "2.0":
        raise EventFileError(
            str(path),
            found=f"Prophesee RAW in EVT {version}" if version else "a RAW header that names no EVT version",
            expected="EVT 2.0 or 3.0",
            fix="convert it with metavision_file_to_hdf5 or to EVT3",
        )
    if (path.stat().st_size - start) % 4:
        raise EventFileError(str(path), found="a last word that is cut off", expected="whole words of 4 bytes")
    words = np.memmap(path, "<u4", "r", start) if path.stat().st_size > start else np.empty(0, "<u4")
    return _decoded(path, words, window, size)


def is_raw(path: Path) -> bool:
    """Return whether a file that begins with ``%`` names a version of EVT."""
    return any(re.match(r"% (evt|format EVT)", line) for line in read_header(path)[0])


def read_header(path: Path) -> tuple[list[str], int]:
    """Return the lines that begin with ``%``, and the offset of the first byte after them."""
    with path.open("rb") as file:
        head = file.read(_MAX_HEADER)
    lines, at = [], 0
    while head[at : at + 1] == b"%":
        end = head.find(b"\n", at)
        if end < 0:
            raise EventFileError(str(path), found="a header without an end", expected="lines that begin with %")
        lines.append(head[at:end].decode("latin1").strip())
        at = end + 1
        if lines[-1] == "% end":
            break
    return lines, at


def _version(header: list[str]) -> str | None:
    for line in header:
        if found := re.match(r"% evt (\d+\.\d+)", line):
            return found[1]
        if found := re.match(r"% format EVT(\d)(\d?)", line):
            return f"{found[1]}.{found[2] or 0}"
    return None


def _geometry(header: list[str]) -> tuple[int, int] | None:
    text = "\n".join(header)
    if found := re.search(r"% geometry (\d{1,5})x(\d{1,5})", text):
        return int(found[1]), int(found[2])
    width, height = (re.search(rf"(?i)\b{name}[= ](\d{{1,5}})", text) for name in ("width", "height"))
    return (int(width[1]), int(height[1])) if width and height else None


def _decoded(
    path: Path, words: NDArray[np.uint32], window: TimeWindow | None, size: tuple[int, int] | None
) -> EventStream:
    start, stop = (0, np.iinfo(np.int64).max) if window is None else (window.start_us, window.stop_us)
    state = np.array([-1, 0, 0], np.int64)
    parts: list[list[NDArray[Any]]] = []
    for at in range(0, len(words), _BLOCK):
        block = np.ascontiguousarray(words[at : at + _BLOCK])
        n = len(block)
        part = np.empty(n, np.uint16), np.empty(n, np.uint16), np.empty(n, np.int64), np.empty(n, np.uint8)
        count = int(_decode_evt2(block, state, start, stop, part))
        if state[2]:
            raise EventFileError(
                str(path), found=f"a word of unknown type near word {at + int(state[2]) - 1}", expected="EVT2 words"
            )
        parts.append([column[:count].copy() for column in part])
        require_room(path, sum(len(part[0]) for part in parts))
    if window is not None and not sum(len(part[0]) for part in parts):
        raise empty_window(path, window)
    if not parts:
        return EventStream.from_arrays(*(np.empty(0, np.int64),) * 4, source=str(path))
    columns = (np.concatenate(column) for column in zip(*parts, strict=True))
    return EventStream.from_arrays(*columns, sensor_size=size, source=str(path))


@compiled
def _decode_evt2(
    words: NDArray[np.uint32],
    state: NDArray[np.int64],
    start: int,
    stop: int,
    columns: tuple[NDArray[np.uint16], NDArray[np.uint16], NDArray[np.int64], NDArray[np.uint8]],
) -> int:
    """Write events into x, y, t and p, and return their number.

    ``state`` goes from block to block: time high or -1, how often it wrapped, 1 + the first word of unknown type.
    """
    x, y, t, p = columns
    count = 0
    high, wraps = state[0], state[1]
    for i in range(len(words)):
        word = np.int64(words[i])
        kind = word >> 28
        if kind <= 1:
            if high < 0:  # before the first time high, the time of an event is not known
                continue
            time = (((wraps << 28) + high) << 6) | ((word >> 22) & 0x3F)
            if start <= time < stop:
                x[count] = (word >> 11) & 0x7FF
                y[count] = word & 0x7FF
                t[count] = time
                p[count] = kind
                count += 1
        elif kind == 8:
            now = word & 0xFFFFFFF
            if now < high and high - now > (1 << 27):
                wraps += 1
            high = now
        elif kind != 10 and kind < 14:
            state[2] = i + 1
            break
    state[0], state[1] = high, wraps
    return count
