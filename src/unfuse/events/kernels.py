"""Loops over events, in their order, on one thread.

``EventStream`` has checked the coordinates that index the output; the caller allocates the output for them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unfuse.compiled import compiled

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]


@compiled
def draw_last(x: U16, y: U16, p: U8, frame: U8) -> None:
    """Paint the pixel of each event in ``[H, W, 3]``: red for 1, blue for 0."""
    for i in range(len(x)):
        brighter = p[i] != 0
        frame[y[i], x[i], 0] = 255 if brighter else 0
        frame[y[i], x[i], 1] = 0
        frame[y[i], x[i], 2] = 0 if brighter else 255


@compiled
def count(x: U16, y: U16, p: U8, counts: NDArray[np.uint32]) -> None:
    """Count each event in its polarity's plane of ``[2, H, W]``."""
    for i in range(len(x)):
        counts[p[i], y[i], x[i]] += 1


@compiled
def spread_in_time(x: U16, y: U16, p: U8, t: NDArray[np.int64], grid: NDArray[np.float64]) -> None:
    """Add each event's sign to the two nearest bins of ``[B, H, W]``, weighted by nearness in time."""
    bins = len(grid)
    start = t[0]
    duration = max(t[-1] - start, 1)
    for i in range(len(x)):
        position = (bins - 1) * ((t[i] - start) / duration)
        low = int(position)
        part = position - low
        sign = 1.0 if p[i] != 0 else -1.0
        grid[low, y[i], x[i]] += sign * (1.0 - part)
        if low + 1 < bins:
            grid[low + 1, y[i], x[i]] += sign * part


@compiled
def latest(x: U16, y: U16, p: U8, t: NDArray[np.int64], last: NDArray[np.int64]) -> None:
    """Store each pixel's last time in its polarity's plane of ``[2, H, W]``."""
    for i in range(len(x)):
        last[p[i], y[i], x[i]] = t[i]
