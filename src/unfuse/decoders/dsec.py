"""DSEC ``events.h5`` through h5py; a window of a recording is read without the rest.

``events/{x, y, p, t}`` with t in microseconds from the recording's start; ``ms_to_idx[m]`` is the first event at or
after millisecond m; ``t_offset`` places that start on the image clock and is not added here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import h5py
import hdf5plugin  # noqa: F401  # importing registers the Blosc filter
import numpy as np

from unfuse.decoders.batches import Batch, Decoded, RefusedError, batch

_COLUMNS: Final = ("x", "y", "t", "p")
_CHUNK: Final = 1 << 16
_BATCH: Final = 1 << 22
_MAX_CHUNK_BYTES: Final = 256 << 20
_MAX_EXPANSION: Final = 2000
"""Bytes read for each stored byte: a few kilobytes can claim terabytes of one value."""
SENSOR_SIZE: Final = (640, 480)


def decode(path: str, start: int | None, stop: int | None) -> Decoded:
    """Open a recording and find the window in microseconds."""
    file, columns, length = _opened(path)
    span = (int(columns["t"][0]), int(columns["t"][length - 1])) if length else None
    first, last = 0, length
    if start is not None and stop is not None:
        first, last = indices(file, columns["t"], length, [start, stop])
    return Decoded(_batches(columns, first, last), SENSOR_SIZE, span)


def decode_events(path: str, first: int, last: int) -> Decoded:
    """Return events ``first`` to ``last`` by their number."""
    _, columns, length = _opened(path)
    return Decoded(_batches(columns, min(first, length), min(last, length)), SENSOR_SIZE)


def inspect(path: str, edges: list[int], numbers: list[int]) -> dict[str, Any]:
    """Return facts of a recording that are needed before its windows are read.

    Args:
        path: the file.
        edges: times in microseconds; ``indices`` has the number of the first event at or after each.
        numbers: event numbers; ``times`` has the time of each.

    Returns:
        ``events``, ``span`` (first and last time), ``t_offset`` (0 if there is none), ``indices`` and ``times``.
    """
    file, columns, length = _opened(path)
    times = columns["t"]
    offset = file.get("t_offset")
    return {
        "events": length,
        "span": [int(times[0]), int(times[length - 1])] if length else None,
        "t_offset": int(offset[()]) if isinstance(offset, h5py.Dataset) and offset.shape == () else 0,
        "indices": indices(file, times, length, edges),
        "times": [int(times[number]) for number in numbers],
    }


def indices(file: h5py.File, times: Any, length: int, edges: list[int]) -> list[int]:
    """Return the number of the first event at or after each time."""
    index = file.get("ms_to_idx")
    listed = isinstance(index, h5py.Dataset) and index.ndim == 1 and index.dtype.kind in "iu"
    if index is not None and not listed:
        raise RefusedError("a ms_to_idx that is no list of integers", "the first event of each millisecond")
    return [_first_at(times, index, edge, length) for edge in edges]


def _opened(path: str) -> tuple[h5py.File, dict[str, Any], int]:
    file = h5py.File(path, "r")
    events = file.get("events")
    if not isinstance(events, h5py.Group) or any(not isinstance(events.get(n), h5py.Dataset) for n in _COLUMNS):
        raise RefusedError(f"groups {sorted(file)[:8]}", "events/{x, y, t, p}")
    columns = {name: events[name] for name in _COLUMNS}
    for name, column in columns.items():
        # An untrusted recording could name other files of this machine: by links, or as raw bytes.
        if column.file.filename != file.filename or column.external or column.is_virtual:
            raise RefusedError(f"events/{name} in another file", "a file that is complete in itself")
    return file, columns, _length(columns)


def _length(columns: dict[str, Any]) -> int:
    lengths = set()
    for name, column in columns.items():
        if column.ndim != 1 or column.dtype.kind not in "iub":
            raise RefusedError(f"events/{name} of {column.dtype} {column.shape}"[:100], "a list of integers")
        size = len(column) * column.dtype.itemsize
        if size > _MAX_EXPANSION * (column.id.get_storage_size() + 4096):
            raise RefusedError(f"events/{name}: {column.id.get_storage_size()} bytes that claim {size}", "real events")
        if column.chunks is not None and column.chunks[0] * column.dtype.itemsize > _MAX_CHUNK_BYTES:
            raise RefusedError(f"events/{name} in chunks of {column.chunks[0]}", "chunks that fit in memory")
        lengths.add(len(column))
    if len(lengths) != 1:
        raise RefusedError(f"lengths {sorted(lengths)}", "equal lengths of x, y, t and p")
    return int(lengths.pop())


def _batches(columns: dict[str, Any], first: int, last: int) -> Iterator[Batch]:
    for at in range(first, last, _BATCH):
        end = min(at + _BATCH, last)
        x, y, t, p = (columns[name][at:end] for name in _COLUMNS)
        yield batch(x, y, t, p, None, None)


def _first_at(times: Any, index: Any, target_us: int, length: int) -> int:
    """Return the number of the first event at or after ``target_us``."""
    low, high = 0, length
    millisecond = target_us // 1000
    if index is not None and len(index):
        if millisecond >= len(index):
            # Events may follow the last millisecond of the index.
            low = int(index[len(index) - 1])
        else:
            low = int(index[millisecond])
            high = int(index[millisecond + 1]) if millisecond + 1 < len(index) else length
        low, high = min(max(low, 0), length), min(max(high, 0), length)
        # An index of another recording would silently give other events.
        if low and int(times[low - 1]) >= target_us:
            raise RefusedError(f"a ms_to_idx that is wrong at {millisecond} ms", "the index of these events")
        if high < length and int(times[high]) < target_us:
            raise RefusedError(f"a ms_to_idx that is wrong at {millisecond + 1} ms", "the index of these events")
    while high - low > _CHUNK:
        middle = (low + high) // 2
        if int(times[middle]) < target_us:
            low = middle + 1
        else:
            high = middle
    part = times[low:high].astype(np.int64)
    return low + int(np.searchsorted(part, target_us, side="left"))
