"""The clock: true times of stages and of the sub-spans inside them.

A stage is timed on two clocks. Host: ``perf_counter`` between two synchronised edges. Device: between two device
events at these edges. The device is synchronised at stage edges only; sub-spans add events but never wait.

Code below the pipeline marks its sub-spans with ``span("rasterise")``; without an active clock that costs a context
variable look-up and measures nothing.

Start times are host times since a zero that the caller sets. At a stage's start the device is idle, and the host reads
its clock and marks the device's queue together: so the stage's first device event is at its host start time.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from statistics import median
from typing import Any, Final, Protocol

from unfuse.measure import host_time
from unfuse.measure.timers import DeviceTimer
from unfuse.records.schema import StageTime

HOST_ONLY: Final = frozenset({"load"})
"""Stages without work on the device; their device time is None, not the idle time between two events."""
DEVICE_SPAN: Final = {"preprocess": "upload"}
"""Stages that use the device in one sub-span only: that span's device time is the stage's."""


class Clock(Protocol):
    """Interface of a clock for the pipeline."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time the body as stage ``name``."""


class NoClock:
    """Clock without edges and synchronisation: for the unstaged run that the stages are balanced against."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Run the body."""
        return nullcontext()


class Spans(Protocol):
    """Interface of a receiver of sub-spans."""

    def span(self, name: str) -> AbstractContextManager[None]:
        """Surround a part of the current stage."""


@dataclass(slots=True)
class _OpenSpan:
    name: str
    started_ns: int
    host_ms: float
    start: Any | None
    end: Any | None


@dataclass(slots=True)
class StageClock:
    """Times the stages of one run of one sample."""

    timer: DeviceTimer
    zero_ns: int = 0
    """Reading of ``perf_counter_ns`` that start times count from."""
    stages: dict[str, StageTime] = field(default_factory=dict)
    spans: dict[str, StageTime] = field(default_factory=dict)
    """By ``stage.name``; a span entered several times in one stage is summed, its entries kept."""
    _open: list[_OpenSpan] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body between synchronised edges.

        The edges' own cost is outside the time they delimit, except for one event record and one clock reading.
        """
        timer = self.timer
        self._open.clear()
        token = _active.set(self)
        timer.synchronize()
        started = host_time.now_ns()
        start = timer.record()
        try:
            yield
        finally:
            _active.reset(token)
            end = timer.record()
            timer.synchronize()
            host_ms = (host_time.now_ns() - started) / 1e6
            self._close(name, self._since_zero(started), host_ms, start, end)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Time a part of the current stage, without waiting for the device."""
        start = self.timer.record()
        started = host_time.now_ns()
        try:
            yield
        finally:
            host_ms = (host_time.now_ns() - started) / 1e6
            self._open.append(_OpenSpan(name, started, host_ms, start, self.timer.record()))

    def _close(self, stage: str, start_ms: float, host_ms: float, start: Any | None, end: Any | None) -> None:
        for span in self._open:
            key = f"{stage}.{span.name}"
            offset_ms = self._device_ms(start, span.start)
            entry = StageTime(
                host_ms=span.host_ms,
                device_ms=self._device_ms(span.start, span.end),
                start_ms=self._since_zero(span.started_ns),
                device_start_ms=None if offset_ms is None else start_ms + offset_ms,
            )
            self.spans[key] = _joined(self.spans.get(key), entry)
        if stage in HOST_ONLY:
            device_ms = device_start_ms = None
        elif stage in DEVICE_SPAN:
            inner = self.spans.get(f"{stage}.{DEVICE_SPAN[stage]}")
            device_ms, device_start_ms = (inner.device_ms, inner.device_start_ms) if inner else (None, None)
        else:
            device_ms = self._device_ms(start, end)
            device_start_ms = None if device_ms is None else start_ms
        self.stages[stage] = StageTime(
            host_ms=host_ms, device_ms=device_ms, start_ms=start_ms, device_start_ms=device_start_ms
        )

    def _since_zero(self, reading_ns: int) -> float:
        return (reading_ns - self.zero_ns) / 1e6

    def _device_ms(self, start: Any | None, end: Any | None) -> float | None:
        return None if start is None or end is None else self.timer.elapsed_ms(start, end)


def _joined(before: StageTime | None, entry: StageTime) -> StageTime:
    if before is None:
        return entry
    device_ms = None if entry.device_ms is None else entry.device_ms + (before.device_ms or 0.0)
    return StageTime(
        host_ms=before.host_ms + entry.host_ms,
        device_ms=device_ms,
        start_ms=before.start_ms,
        device_start_ms=before.device_start_ms,
        entries=(*(before.entries or (before,)), entry),
    )


_active: ContextVar[Spans | None] = ContextVar("unfuse_active_clock", default=None)


@contextmanager
def listening(spans: Spans) -> Iterator[None]:
    """Give every ``span`` of the body to ``spans``."""
    token = _active.set(spans)
    try:
        yield
    finally:
        _active.reset(token)


def span(name: str) -> AbstractContextManager[None]:
    """Mark a sub-span of the running stage; without effect if no stage is timed."""
    clock = _active.get()
    return nullcontext() if clock is None else clock.span(name)


def zero_of(created: str) -> int:
    """Return the reading of ``perf_counter_ns`` at a moment of the wall clock.

    A process that resumes a run has another zero of ``perf_counter_ns`` than the first process. With this reading, its
    start times continue to increase.

    Args:
        created: ISO-8601 with its offset.
    """
    passed_ns = time.time_ns() - int(datetime.fromisoformat(created).timestamp() * 1e9)
    return host_time.now_ns() - passed_ns


@contextmanager
def settled_heap() -> Iterator[None]:
    """Exclude the present objects from garbage collections in the body.

    Walking the objects of torch and a model takes a quarter of a second, and leaves cold caches to the next
    measurement.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def paused_gc() -> Iterator[None]:
    """Collect garbage, then stop the garbage collector for the body."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def resolution_ns() -> int:
    """Return the smallest step between two readings of the host clock, in ns."""
    steps = []
    for _ in range(200):
        first = host_time.now_ns()
        while (later := host_time.now_ns()) == first:
            pass
        steps.append(later - first)
    return min(steps)


def edge_cost_ms(timer: DeviceTimer, *, repeats: int = 300) -> float:
    """Return the host time that a timed stage adds to a run, in ms: the median of empty stages on an idle device."""
    costs = []
    clock = StageClock(timer)
    for _ in range(repeats):
        started = host_time.now_ns()
        with clock.stage("empty"):
            pass
        costs.append((host_time.now_ns() - started) / 1e6)
    return median(costs)
