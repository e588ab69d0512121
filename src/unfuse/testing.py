"""Public fakes for tests: a synthetic event stream, an asynchronous device, a clock, and a GPU of known power."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

import numpy as np

from unfuse.events import EventStream
from unfuse.measure.energy import SystemTime
from unfuse.measure.nvml import GpuProcess
from unfuse.unavailable import Unavailable


def synthetic_stream(
    num_events: int = 5_000, *, seed: int = 0, size: tuple[int, int] = (64, 48), duration_us: int = 50_000
) -> EventStream:
    """Return random events, sorted by time, with many events per pixel.

    Args:
        num_events: number of events.
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
    """A ``DeviceTimer`` of a device that is only a queue of work.

    ``launch`` returns at once, as a kernel launch does; ``synchronize`` waits until the queue is empty.
    """

    def __init__(self, clock: SystemTime = time) -> None:
        """Start with an empty queue.

        Args:
            clock: the clock. With a ``FakeTime``, ``synchronize`` advances it and does not wait.
        """
        self.clock = clock
        self._drained = 0.0

    def launch(self, milliseconds: float) -> None:
        """Append work to the queue."""
        self._drained = max(self._drained, self.clock.perf_counter()) + milliseconds / 1000

    def synchronize(self) -> None:
        """Wait until the queue is empty."""
        while (rest := self._drained - self.clock.perf_counter()) > 0:
            self.clock.sleep(rest)

    def record(self) -> Any:
        """Return the time in seconds when the present queue becomes empty."""
        return max(self._drained, self.clock.perf_counter())

    def elapsed_ms(self, start: float, end: float) -> float:
        """Return the milliseconds between two results of ``record``."""
        return (end - start) * 1000


class FakeTime:
    """A clock that only ``sleep`` advances."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        """Return the time in s."""
        return self.now

    def perf_counter_ns(self) -> int:
        """Return the time in ns; replaces ``unfuse.measure.host_time.now_ns``."""
        return round(self.now * 1e9)

    def sleep(self, seconds: float, /) -> None:
        """Advance the clock, without waiting."""
        self.now += seconds


class FakeGpu:
    """A ``Gpu`` of known power, with an energy counter that advances in steps."""

    name = "a fake GPU"

    def __init__(self, *, idle_watts: float = 80.0, period_s: float = 0.05, clock: SystemTime | None = None):
        """Start idle.

        Args:
            idle_watts: power outside of ``work``.
            period_s: period of the counter.
            clock: the clock; by default one that only ``work`` and waiting advance.
        """
        self.clock: SystemTime = clock or FakeTime()
        self.worked_s = 0.0
        self.unread: Unavailable | None = None
        """Result of every reading, if it is set."""
        self.running: tuple[GpuProcess, ...] = ()
        self.busy_pct = 0
        self.slow: tuple[str, ...] = ()
        self.slow_s: dict[str, float] = {}
        self._idle_watts = idle_watts
        self._period_s = period_s
        self._works: list[tuple[float, float, float]] = []
        """Start in s, watts above idle, and earlier joules above idle, of each work in order."""
        self._ends_s: list[float] = []
        self._above_idle_j = 0.0

    def work(self, seconds: float, watts: float) -> None:
        """Run for some time at a power that includes idle power."""
        start = self.clock.perf_counter()
        self.clock.sleep(seconds)
        self.worked_s += seconds
        above = watts - self._idle_watts
        self._works.append((start, above, self._above_idle_j))
        self._ends_s.append(self.clock.perf_counter())
        self._above_idle_j += above * (self._ends_s[-1] - start)

    def last_update_s(self) -> float:
        """Return when the counter last moved."""
        return self.clock.perf_counter() // self._period_s * self._period_s

    def energy_mj(self) -> int | Unavailable:
        """Return the energy up to the last update."""
        if self.unread is not None:
            return self.unread
        at = self.last_update_s()
        joules = self._idle_watts * at
        done = bisect_right(self._ends_s, at)
        if done == len(self._works):
            joules += self._above_idle_j
        else:  # the update was during a work, or between two
            start, above, before = self._works[done]
            joules += before + above * max(0.0, at - start)
        return int(1000 * joules)

    def processes(self) -> tuple[GpuProcess, ...] | Unavailable:
        """Return ``running``."""
        return self.unread or self.running

    def utilisation_pct(self) -> int | Unavailable:
        """Return ``busy_pct``."""
        return self.unread or self.busy_pct

    def throttle_reasons(self) -> tuple[str, ...] | Unavailable:
        """Return ``slow``."""
        return self.unread or self.slow

    def throttled_s(self) -> Mapping[str, float] | Unavailable:
        """Return ``slow_s``."""
        return self.unread or dict(self.slow_s)
