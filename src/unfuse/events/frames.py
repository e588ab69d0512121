"""Event frames as EventGPT draws them: each pixel shows its last event.

Source: ``common/common.py`` of the published code (XduSyL/EventGPT); it loops over events in Python.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unfuse.errors import EventStreamError
from unfuse.events.kernels import draw_last
from unfuse.events.stream import EventStream
from unfuse.events.windows import split_equal_count

SizeRule = Literal["events", "sensor"]


def event_frame(stream: EventStream, *, size: SizeRule = "events") -> NDArray[np.uint8]:
    """Draw one frame.

    Args:
        stream: at least one event, unless the size is the sensor's.
        size: "events" is the published rule: H = max y + 1 and W = max x + 1 of these events, so that the size depends
            on the data. "sensor" takes the recording's sensor.

    Returns:
        Read-only RGB uint8 ``[H, W, 3]``: red if a pixel's last event was brighter, blue if darker, white if none.

    Raises:
        EventStreamError: no events, or the sensor's size is not known.
    """
    width, height = frame_size(stream, size)
    frame = np.full((height, width, 3), 255, dtype=np.uint8)
    draw_last(stream.x, stream.y, stream.p, frame)
    frame.setflags(write=False)
    return frame


def event_frames(stream: EventStream, num_frames: int = 5, *, size: SizeRule = "events") -> list[NDArray[np.uint8]]:
    """Split a stream into runs of equal event count and draw each.

    Raises:
        EventStreamError: fewer events than frames, or the sensor's size is asked for and not known.
    """
    return [event_frame(run, size=size) for run in split_equal_count(stream, num_frames)]


def frame_size(stream: EventStream, size: SizeRule) -> tuple[int, int]:
    """Return (width, height) by a rule.

    Raises:
        EventStreamError: no events, or the sensor's size is not known.
    """
    if size == "sensor":
        if stream.sensor_size is None:
            raise EventStreamError(
                "frame size",
                found="a recording that does not say its sensor's size",
                expected='size="events", or a recording that does',
            )
        return stream.sensor_size
    if not len(stream):
        raise EventStreamError("events", found="none", expected="at least one to size a frame by")
    return int(stream.x.max()) + 1, int(stream.y.max()) + 1
