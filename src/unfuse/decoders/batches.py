"""What every decoder gives, and how it says that a file is not what it should be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Batch = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64], NDArray[np.int8]]
"""x, y, t and p of some events."""


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
    columns = [np.asarray(column) for column in (x, y, t, p)]
    columns[2] = columns[2].astype(np.int64)
    if start is not None and stop is not None:
        inside = (columns[2] >= start) & (columns[2] < stop)
        columns = [column[inside] for column in columns]
    across, down, times, polarity = columns
    return across.astype(np.int32), down.astype(np.int32), times, polarity.astype(np.int8)
