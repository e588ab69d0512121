"""Event frames as EventGPT draws them: each pixel shows its last event.

Source: ``common/common.py`` of the published code (XduSyL/EventGPT), which loops over events in Python.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from unfuse.events.stream import EventStream
from unfuse.events.windows import split_equal_count

_EMPTY: Final = 2
_PALETTE: Final = np.array([[0, 0, 255], [255, 0, 0], [255, 255, 255]], dtype=np.uint8)
"""Colour of polarity 0, of polarity 1, and of a pixel without events."""


def event_frame(stream: EventStream) -> NDArray[np.uint8]:
    """Draws one frame.

    Returns:
        Read-only RGB uint8 ``[H, W, 3]`` with H = max y + 1 and W = max x + 1 of these events: the size depends on the
        data, as published.
    """
    height, width = int(stream.y.max()) + 1, int(stream.x.max()) + 1
    codes = np.full(height * width, _EMPTY, dtype=np.uint8)
    place = stream.y.astype(np.int64)
    place *= width
    place += stream.x
    # numpy assigns in order, so that of repeated indices the last value stays; a test holds it against a loop.
    codes[place] = stream.p
    # Every code is in range; "clip" spares take the check that would buffer its output.
    frame = _PALETTE.take(codes, axis=0, mode="clip").reshape(height, width, 3)
    frame.setflags(write=False)
    return frame


def event_frames(stream: EventStream, num_frames: int = 5) -> list[NDArray[np.uint8]]:
    """Cuts a stream into runs of equal event count and draws each.

    Raises:
        EventStreamError: fewer events than frames.
    """
    return [event_frame(run) for run in split_equal_count(stream, num_frames)]
