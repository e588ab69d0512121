"""EventGPT ``.npy``: a pickled dict of arrays x, y, t, p; also a plain structured array with these fields.

``np.load`` is not used: for the published format it would need ``allow_pickle``.
"""

from __future__ import annotations

import ast
import re
import struct
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.lib.format import descr_to_dtype
from numpy.typing import NDArray

from unfuse.decoders.columns import FIELDS, find_columns
from unfuse.errors import EventFileError, UnsafeFileError
from unfuse.events.pickled_arrays import load_pickled_arrays
from unfuse.events.stream import EventStream
from unfuse.events.time_units import TimeUnit, to_microseconds

MAGIC: Final = b"\x93NUMPY"
_MAX_HEADER: Final = 10_000


def read_npy(path: Path, time_unit: TimeUnit | None = None) -> EventStream:
    """Read and validate one recording; ``time_unit`` is the unit of its times, by default the unit in their name.

    Raises:
        UnsafeFileError: the pickle holds anything but plain arrays.
        EventFileError: truncated, corrupt, or without x, y, t and p.
        EventStreamError: the columns are not a valid stream.
    """
    source = str(path)
    return stream_of(parse_npy(path.read_bytes(), source), source, time_unit)


def parse_npy(data: bytes, source: str) -> Any:
    """Return the value of one ``.npy``: an array of integers, or of records of them, or a pickled container of such.

    Raises:
        UnsafeFileError: the pickle holds anything but plain arrays.
        EventFileError: truncated or corrupt, or of another type.
    """
    header, start = _header(data, source)
    descr, shape = header["descr"], header["shape"]
    if descr == "|O":
        return load_pickled_arrays(data[start:], source)
    return _array(descr, shape, data, start, source)


def stream_of(value: Any, source: str, time_unit: TimeUnit | None = None) -> EventStream:
    """Return the events of a dict or record of x, y, t and p, or of a list of them in time order (EventBench's bins).

    ``decoders.columns`` lists other names of these columns. Further columns and fields are left out.

    Raises:
        EventFileError: another type, or without x, y, t and p.
        EventStreamError: the columns are not a valid stream.
    """
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list) and value:
        bins = [_columns(part, source, time_unit) for part in value]
        columns = {name: np.concatenate([part[name] for part in bins]) for name in FIELDS}
    else:
        columns = _columns(value, source, time_unit)
    return EventStream.from_arrays(*(columns[name] for name in FIELDS), source=source)


def _header(data: bytes, source: str) -> tuple[dict[str, Any], int]:
    """Return the header's dict and the offset of the data (numpy.lib.format, versions 1 to 3)."""
    wanted = "a complete .npy header"
    if len(data) < 10 or not data.startswith(MAGIC):
        raise EventFileError(source, found=f"{len(data)} bytes that do not start a .npy file", expected=wanted)
    layout, offset = ("<H", 10) if data[6] == 1 else ("<I", 12)
    if data[6] not in (1, 2, 3) or len(data) < offset:
        raise EventFileError(source, found=f".npy version {data[6]}", expected="1, 2 or 3")
    (length,) = struct.unpack_from(layout, data, 8)
    if length > _MAX_HEADER or offset + length > len(data):
        raise EventFileError(source, found=f"a header of {length} bytes in {len(data)}", expected=wanted)
    try:
        text = data[offset : offset + length].decode("latin1" if data[6] < 3 else "utf-8")
        header = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError) as error:
        raise EventFileError(source, found=f"a malformed header ({type(error).__name__})", expected=wanted) from None
    if not isinstance(header, dict) or {"descr", "shape", "fortran_order"} - set(header):
        raise EventFileError(source, found="a header without descr and shape", expected=wanted)
    return header, offset + length


def _array(descr: Any, shape: Any, data: bytes, start: int, source: str) -> NDArray[np.generic]:
    plain = isinstance(descr, str) and re.fullmatch(r"[<>|=]?[iub][1248]", descr)
    if not plain and not isinstance(descr, list):
        raise EventFileError(source, found=f"dtype {descr!r:.60}", expected="a dict or record of x, y, t and p")
    try:
        # Gaps between the fields of a record are unnamed fields here; np.dtype would name them.
        dtype = descr_to_dtype(descr)
    except (TypeError, ValueError, KeyError, IndexError, RecursionError, OverflowError):
        raise EventFileError(source, found=f"dtype {descr!r:.60}", expected="fields x, y, t and p") from None
    if dtype.hasobject:
        raise UnsafeFileError(source, found=f"dtype {dtype}"[:120], expected="integer fields")
    if not (isinstance(shape, tuple) and len(shape) == 1 and isinstance(shape[0], int) and shape[0] >= 0):
        raise EventFileError(source, found=f"shape {shape!r:.60}", expected="one dimension")
    size = dtype.itemsize * shape[0]
    if size != len(data) - start:
        raise EventFileError(
            source, found=f"{len(data) - start} bytes of events", expected=f"{size} for {shape[0]} events"
        )
    return np.frombuffer(data, dtype=dtype, count=shape[0], offset=start)


def _columns(value: Any, source: str, time_unit: TimeUnit | None) -> dict[str, NDArray[Any]]:
    if isinstance(value, dict):
        names: tuple[str, ...] = tuple(value)
    elif isinstance(value, np.ndarray) and value.dtype.names:
        names = value.dtype.names
    else:
        raise EventFileError(source, found=type(value).__name__, expected="a dict or record of x, y, t and p")
    try:
        found = find_columns(names)
    except ValueError as error:
        raise EventFileError(source, found=str(error), expected="each column once") from None
    if missing := [name for name in FIELDS if name not in found]:
        raise EventFileError(
            source,
            found=f"fields {', '.join(map(str, names))[:80] or 'none'}",
            expected=f"also {', '.join(missing)}",
        )
    columns = {name: value[found[name].name] for name in FIELDS}
    for name, column in columns.items():
        if not isinstance(column, np.ndarray) or column.ndim != 1:
            kind = f"{column.ndim} dimensions" if isinstance(column, np.ndarray) else type(column).__name__
            raise EventFileError(f"{source}: {name}", found=kind, expected="an array of one dimension")
    if columns["t"].dtype.kind in "iu":
        columns["t"] = to_microseconds(columns["t"], time_unit or found["t"].unit, source)
    return columns
