"""Public fakes for tests: a synthetic recording and a device whose work is asynchronous."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from unfuse.events import EventStream


def synthetic_stream(
    num_events: int = 5_000, *, seed: int = 0, size: tuple[int, int] = (64, 48), duration_us: int = 50_000
) -> EventStream:
    """Random events, sorted by time, with pixels that fire many times.

    Args:
        num_events: how many.
        seed: the same seed gives the same events.
        size: sensor (width, height).
        duration_us: times lie in ``[0, duration_us)``.
    """
    rng = np.random.default_rng(seed)
    return EventStream.from_arrays(
        rng.integers(0, size[0], num_events, dtype=np.uint16),
        rng.integers(0, size[1], num_events, dtype=np.uint16),
        np.sort(rng.integers(0, duration_us, num_events)),
        rng.integers(0, 2, num_events, dtype=np.uint8),
        sensor_size=size,
    )


class AsyncDevice:
    """A ``DeviceTimer`` for a device that exists only as a queue of work and runs beside the host.

    ``launch`` returns at once, as a kernel launch does; ``synchronize`` waits for the queue to drain.
    """

    def __init__(self) -> None:
        self._drained = 0.0

    def launch(self, milliseconds: float) -> None:
        """Puts work on the queue."""
        self._drained = max(self._drained, time.perf_counter()) + milliseconds / 1000

    def synchronize(self) -> None:
        """Waits for the end of the queue."""
        while (rest := self._drained - time.perf_counter()) > 0:
            time.sleep(rest)

    def record(self) -> Any:
        """When the present end of the queue is reached, in seconds."""
        return max(self._drained, time.perf_counter())

    def elapsed_ms(self, start: float, end: float) -> float:
        """Between two marks."""
        return (end - start) * 1000
