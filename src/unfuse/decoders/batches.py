"""What every decoder gives, and how it says that a file is not what it should be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Batch = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64], NDArray[np.int8]]
"""x, y, t and p of some events."""
_KINDS: Final[tuple[type[np.signedinteger[Any]], ...]] = (np.int32, np.int32, np.int64, np.int8)


@dataclass(frozen=True, slots=True)
class Decoded:
    """A recording or a window of it."""

    batches: Iterator[Batch]
    sensor_size: tuple[int, int] | None
    """(width, height) where the file says so."""
    span: tuple[int, int] | None = None
    """First and last time of the recording, where that is known without reading it."""


class RefusedError(Exception):
    """A file whose layout is wrong: what was found and what was expected."""

    def __init__(self, found: str, expected: str):
        super().__init__(found, expected)
        self.found, self.expected = found, expected


def batch(x: Any, y: Any, t: Any, p: Any, start: int | None, stop: int | None) -> Batch:
    """The events of a batch that lie in ``[start, stop)`` microseconds."""
    columns = [_within(column, kind) for column, kind in zip((x, y, t, p), _KINDS, strict=True)]
    if start is not None and stop is not None:
        inside = (columns[2] >= start) & (columns[2] < stop)
        columns = [column[inside] for column in columns]
    across, down, times, polarity = columns
    return across, down, times, polarity


def _within(column: Any, kind: type[np.signedinteger[Any]]) -> NDArray[Any]:
    """Values that do not fit become the nearest that does, which no sensor gives; wrapped, they might pass for real."""
    values = np.asarray(column)
    if not np.can_cast(values.dtype, kind) and values.dtype.kind in "iu":
        here, there = np.iinfo(values.dtype), np.iinfo(kind)
        values = values.clip(max(here.min, there.min), min(here.max, there.max))
    return values.astype(kind)
