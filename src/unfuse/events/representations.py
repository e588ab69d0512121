"""Event representations besides the event frame (``frames``), under their names in the literature.

Sizes are the sensor's by default, as learned models of these inputs expect.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unfuse.errors import EventStreamError
from unfuse.events.frames import SizeRule, frame_size
from unfuse.events.kernels import count, latest, spread_in_time
from unfuse.events.stream import EventStream

_NEVER = np.iinfo(np.int64).min


def event_histogram(stream: EventStream, *, size: SizeRule = "sensor") -> NDArray[np.uint32]:
    """Return the number of events of each pixel and polarity (Maqueda et al., CVPR 2018).

    Returns:
        Read-only uint32 ``[2, H, W]``: darker, brighter.

    Raises:
        EventStreamError: no events, or the sensor's size is not known.
    """
    width, height = frame_size(stream, size)
    counts = np.zeros((2, height, width), np.uint32)
    count(stream.x, stream.y, stream.p, counts)
    counts.setflags(write=False)
    return counts


def voxel_grid(
    stream: EventStream, n_time_bins: int = 5, *, normalize: bool = False, size: SizeRule = "sensor"
) -> NDArray[np.float32]:
    """Return signed events in time bins; the two nearest bins share each event (Zhu et al., CVPR 2019).

    Bin centres lie evenly from the first event to the last, as in DSEC's ``VoxelGrid``. Coordinates are those of the
    sensor, not rectified ones.

    Args:
        stream: at least one event.
        n_time_bins: B.
        normalize: scale the non-zero values to mean 0 and standard deviation 1, as DSEC does.
        size: of the grid.

    Returns:
        Read-only float32 ``[B, H, W]``, summed in float64.

    Raises:
        EventStreamError: no events, no bins, or the sensor's size is not known.
    """
    if n_time_bins < 1:
        raise EventStreamError("n_time_bins", found=n_time_bins, expected="at least 1")
    if not len(stream):
        raise EventStreamError("events", found="none", expected="at least one")
    width, height = frame_size(stream, size)
    sums = np.zeros((n_time_bins, height, width))
    spread_in_time(stream.x, stream.y, stream.p, stream.t, sums)
    if normalize:
        filled = sums != 0
        if np.any(filled):
            values = sums[filled]
            deviation = values.std(ddof=1) if len(values) > 1 else 0.0
            sums[filled] = (values - values.mean()) / (deviation or 1.0)
    grid = sums.astype(np.float32)
    grid.setflags(write=False)
    return grid


def time_surface(
    stream: EventStream, tau_us: float = 50_000.0, *, at_us: int | None = None, size: SizeRule = "sensor"
) -> NDArray[np.float32]:
    """Return exp(-(at - t) / tau) of each pixel's last event, by polarity (Lagorce et al., HOTS, TPAMI 2017).

    Args:
        stream: at least one event.
        tau_us: time constant in microseconds.
        at_us: reference time; the time of the last event by default.
        size: of the surface.

    Returns:
        Read-only float32 ``[2, H, W]``: darker, brighter; 0 without an event, 1 for an event at ``at_us``.

    Raises:
        EventStreamError: no events, a time constant that is not positive, a time before the last event, or the sensor's
            size is not known.
    """
    if not tau_us > 0:
        raise EventStreamError("tau_us", found=tau_us, expected="more than 0")
    if not len(stream):
        raise EventStreamError("events", found="none", expected="at least one")
    seen_from = int(stream.t[-1]) if at_us is None else at_us
    if seen_from < stream.t[-1]:
        raise EventStreamError("at_us", found=seen_from, expected=f"{stream.t[-1]} (the last event) or later")
    width, height = frame_size(stream, size)
    last = np.full((2, height, width), _NEVER)
    latest(stream.x, stream.y, stream.p, stream.t, last)
    fired = last != _NEVER
    surface = np.zeros(last.shape, np.float32)
    surface[fired] = np.exp(-(seen_from - last[fired]) / tau_us)
    surface.setflags(write=False)
    return surface
