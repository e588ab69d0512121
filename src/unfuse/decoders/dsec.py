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
from unfuse.decoders.columns import find_columns

_COLUMNS: Final = ("x", "y", "t", "p")
_CHUNK: Final = 1 << 16
_BATCH: Final = 1 << 22
_MAX_CHUNK_BYTES: Final = 256 << 20
_MAX_EXPANSION: Final = 2000
"""Bytes read for each stored byte: a few kilobytes can claim terabytes of one value."""
SENSOR_SIZE: Final = (640, 480)
_SMALLER: Final = (346, 260)
"""DAVIS346, the largest common sensor that is smaller than DSEC's."""
_SAMPLE: Final = 1024
_SIZE_NAMES: Final = (("width", "height"), ("sensor_width", "sensor_height"), ("Width", "Height"), ("res_x", "res_y"))
_PAIR_NAMES: Final = ("sensor_resolution", "sensor_size", "resolution", "image_size")


def decode(path: str, start: int | None, stop: int | None) -> Decoded:
    """Open a recording and find the window in microseconds."""
    file, columns, length = _opened(path)
    span = (int(columns["t"][0]), int(columns["t"][length - 1])) if length else None
    first, last = 0, length
    if start is not None and stop is not None:
        first, last = indices(file, columns["t"], length, [start, stop])
    return Decoded(_batches(columns, first, last), _stated_size(file), span, _usual_size(file, columns, length))


def decode_events(path: str, first: int, last: int) -> Decoded:
    """Return events ``first`` to ``last`` by their number."""
    file, columns, length = _opened(path)
    batches = _batches(columns, min(first, length), min(last, length))
    return Decoded(batches, _stated_size(file), usual_size=_usual_size(file, columns, length))


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
    try:
        named = find_columns(events) if isinstance(events, h5py.Group) else {}
    except ValueError as error:
        raise RefusedError(f"events with {error}", "each column once") from None
    if any(name not in named or not isinstance(events.get(named[name].name), h5py.Dataset) for name in _COLUMNS):
        raise RefusedError(f"groups {sorted(file)[:8]}", "events/{x, y, t, p}")
    if (unit := named["t"].unit) not in (None, "us"):
        raise RefusedError(f"events/{named['t'].name} in {unit}", "microseconds")
    columns = {name: events[named[name].name] for name in _COLUMNS}
    for name, column in columns.items():
        # An untrusted recording could name other files of this machine: by links, or as raw bytes.
        if column.file.filename != file.filename or column.external or column.is_virtual:
            raise RefusedError(f"events/{name} in another file", "a file that is complete in itself")
    return file, columns, _length(columns)


def _stated_size(file: h5py.File) -> tuple[int, int] | None:
    """Return the sensor's (width, height) from attributes or single numbers beside the events."""
    for group in (file["events"], file):
        for names in _SIZE_NAMES:
            sides = [_number(group, name) for name in names]
            if all(sides):
                return sides[0] or 0, sides[1] or 0
        for name in _PAIR_NAMES:
            pair = group.attrs.get(name)
            if isinstance(pair, np.ndarray) and pair.shape == (2,) and pair.dtype.kind in "iu" and pair.min() > 0:
                # Writers disagree on the order; every event sensor is at least as wide as high.
                return int(pair.max()), int(pair.min())
    return None


def _number(group: Any, name: str) -> int | None:
    value = group.attrs.get(name)
    if value is None:
        dataset = group.get(name)
        # One number of this file; a link could lead to another file of the machine.
        own = isinstance(dataset, h5py.Dataset) and dataset.size == 1 and dataset.file.filename == group.file.filename
        if not own or dataset.external or dataset.is_virtual or dataset.dtype.kind not in "iu":
            return None
        value = dataset[()]
    number = np.asarray(value)
    return int(number.flat[0]) if number.size == 1 and number.dtype.kind in "iu" and number.flat[0] > 0 else None


def _usual_size(file: h5py.File, columns: dict[str, Any], length: int) -> tuple[int, int] | None:
    """Return DSEC's size for a file with DSEC's ``t_offset``, unless a smaller sensor could have written its events."""
    if "t_offset" not in file or not length:
        return None
    for first in (0, max(length - _SAMPLE, 0)):
        reach = tuple(int(columns[name][first : first + _SAMPLE].max()) + 1 for name in ("x", "y"))
        if any(side > limit for side, limit in zip(reach, _SMALLER, strict=True)):
            return SENSOR_SIZE
    return None


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
