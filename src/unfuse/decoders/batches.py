"""Types of every decoder: batches of events, and the error for a file of a wrong layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Batch = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64], NDArray[np.int8]]
"""x, y, t and p of consecutive events."""
_KINDS: Final[tuple[type[np.signedinteger[Any]], ...]] = (np.int32, np.int32, np.int64, np.int8)


@dataclass(frozen=True, slots=True)
class Decoded:
    """A recording or a window of it."""

    batches: Iterator[Batch]
    sensor_size: tuple[int, int] | None
    """(width, height) if the file states it."""
    span: tuple[int, int] | None = None
    """First and last time of the recording, if known without reading it."""
    usual_size: tuple[int, int] | None = None
    """(width, height) of the sensor that such files come from, if the file states none and looks like one of them."""


class RefusedError(Exception):
    """A file has a wrong layout. The error holds the layout found and the layout expected."""

    def __init__(self, found: str, expected: str):
        super().__init__(found, expected)
        self.found, self.expected = found, expected


def batch(x: Any, y: Any, t: Any, p: Any, start: int | None, stop: int | None) -> Batch:
    """Return the events of a batch within ``[start, stop)`` microseconds."""
    columns = [_clipped(column, kind) for column, kind in zip((x, y, t, p), _KINDS, strict=True)]
    if start is not None and stop is not None:
        inside = (columns[2] >= start) & (columns[2] < stop)
        columns = [column[inside] for column in columns]
    x, y, t, p = columns
    return x, y, t, p


def _clipped(column: Any, kind: type[np.signedinteger[Any]]) -> NDArray[Any]:
    """Clip values that do not fit: no sensor has the limits, but a wrapped value might pass for a real one."""
    values = np.asarray(column)
    if not np.can_cast(values.dtype, kind) and values.dtype.kind in "iu":
        source, target = np.iinfo(values.dtype), np.iinfo(kind)
        values = values.clip(max(source.min, target.min), min(source.max, target.max))
    return values.astype(kind)
