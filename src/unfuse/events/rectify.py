"""Rectification: events moved to the rectified picture by DSEC's ``rectify_map.h5``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unfuse.errors import EventStreamError
from unfuse.events.readers import decoder_client
from unfuse.events.stream import EventStream


@dataclass(frozen=True, slots=True, eq=False)
class RectifyMap:
    """Nearest rectified pixel of each pixel."""

    x: NDArray[np.int32]
    """``[H, W]``; outside of 0 to W - 1 if the pixel leaves the picture."""
    y: NDArray[np.int32]
    """``[H, W]``"""

    def __call__(self, stream: EventStream) -> EventStream:
        """Return the events that stay in the picture, in their order.

        Raises:
            EventStreamError: the sensor is larger than the map, or no event stays.
        """
        height, width = self.x.shape
        if int(stream.x.max(initial=0)) >= width or int(stream.y.max(initial=0)) >= height:
            raise EventStreamError("events", found="pixels beyond the rectify map", expected=f"{width} x {height}")
        x, y = self.x[stream.y, stream.x], self.y[stream.y, stream.x]
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        columns = (x[inside], y[inside], stream.t[inside], stream.p[inside])
        return EventStream.from_arrays(*columns, sensor_size=(width, height), source="rectified events")


def read_rectify_map(path: Path) -> RectifyMap:
    """Read DSEC's ``rectify_map.h5``.

    Raises:
        EventFileError: another layout, or damaged.
        MissingPackageError: the extra ``dsec`` is not installed.
    """
    columns, (width, height) = decoder_client.decode_table("rectify_map", path)
    return RectifyMap(columns["x"].reshape(height, width), columns["y"].reshape(height, width))
