"""Public fakes for tests: a synthetic recording, a device whose work is asynchronous, a GPU whose power is known."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

import numpy as np

from unfuse.events import EventStream
from unfuse.measure.energy import Time
from unfuse.measure.nvml import GpuProcess, Unread


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

    def __init__(self, clock: Time = time) -> None:
        """Starts with an empty queue.

        Args:
            clock: where time comes from. With a ``FakeTime``, ``synchronize`` moves it and nothing waits.
        """
        self.clock = clock
        self._drained = 0.0

    def launch(self, milliseconds: float) -> None:
        """Puts work on the queue."""
        self._drained = max(self._drained, self.clock.perf_counter()) + milliseconds / 1000

    def synchronize(self) -> None:
        """Waits for the end of the queue."""
        while (rest := self._drained - self.clock.perf_counter()) > 0:
            self.clock.sleep(rest)

    def record(self) -> Any:
        """When the present end of the queue is reached, in seconds."""
        return max(self._drained, self.clock.perf_counter())

    def elapsed_ms(self, start: float, end: float) -> float:
        """Between two marks."""
        return (end - start) * 1000


class FakeTime:
    """A clock that moves only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        """In s."""
        return self.now

    def perf_counter_ns(self) -> int:
        """In ns: the replacement of ``unfuse.measure.host_time.now_ns``."""
        return round(self.now * 1e9)

    def sleep(self, seconds: float, /) -> None:
        """Moves on at once."""
        self.now += seconds


class FakeGpu:
    """A ``Gpu`` that draws known power and counts its energy in steps, in a time of its own unless it is given one."""

    name = "a fake GPU"

    def __init__(self, *, idle_watts: float = 80.0, period_s: float = 0.05, clock: Time | None = None):
        """Idles at first.

        Args:
            idle_watts: drawn at all times but in ``work``.
            period_s: of the counter.
            clock: where time comes from; one that only ``work`` and waiting move by default.
        """
        self.clock: Time = clock or FakeTime()
        self.worked_s = 0.0
        self.unread: Unread | None = None
        """What every reading gives, if it is set."""
        self.running: tuple[GpuProcess, ...] = ()
        self.busy_pct = 0
        self.slow: tuple[str, ...] = ()
        self.slow_s: dict[str, float] = {}
        self._idle_watts = idle_watts
        self._period_s = period_s
        self._works: list[tuple[float, float, float]] = []
        """Begin in s, watts above idle, and joules above idle before it, of each work, in order."""
        self._ends_s: list[float] = []
        self._above_idle_j = 0.0

    def work(self, seconds: float, watts: float) -> None:
        """Run for so long at so much power, idle draw included."""
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

    def energy_mj(self) -> int | Unread:
        """Return the energy up to the last update."""
        if self.unread is not None:
            return self.unread
        at = self.last_update_s()
        joules = self._idle_watts * at
        done = bisect_right(self._ends_s, at)
        if done == len(self._works):
            joules += self._above_idle_j
        else:  # the update fell into a work, or between two
            start, above, before = self._works[done]
            joules += before + above * max(0.0, at - start)
        return int(1000 * joules)

    def processes(self) -> tuple[GpuProcess, ...] | Unread:
        """``running``."""
        return self.unread or self.running

    def utilisation_pct(self) -> int | Unread:
        """``busy_pct``."""
        return self.unread or self.busy_pct

    def slowed_by(self) -> tuple[str, ...] | Unread:
        """``slow``."""
        return self.unread or self.slow

    def slowed_s(self) -> Mapping[str, float] | Unread:
        """``slow_s``."""
        return self.unread or dict(self.slow_s)
