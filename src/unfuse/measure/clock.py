"""The clock: true times of stages and of the sub-spans inside them.

A stage is timed on two clocks. Host: ``perf_counter`` between two synchronised edges. Device: between two device events
at the same edges. The device is synchronised at stage edges only; sub-spans add events but never wait.

Code below the pipeline marks its sub-spans with ``span("rasterise")``; without an active clock that costs a context
variable look-up and measures nothing.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final, Protocol

from unfuse.measure.timers import DeviceTimer
from unfuse.runs.schema import StageTime

HOST_ONLY: Final = frozenset({"load"})
"""Stages that give the device no work; their device time is None, not the idle time between two events."""
DEVICE_SPAN: Final = {"preprocess": "upload"}
"""Stages that use the device in one sub-span only: that span's device time is the stage's."""


class Clock(Protocol):
    """What the pipeline needs of a clock."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Times the body as stage ``name``."""


class NoClock:
    """No edges and no synchronisation between stages: the unstaged run that the stages are balanced against."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Runs the body."""
        return nullcontext()


@dataclass(slots=True)
class _OpenSpan:
    name: str
    host_ms: float
    start: Any | None
    end: Any | None


@dataclass(slots=True)
class StageClock:
    """Times the stages of one run of one sample."""

    timer: DeviceTimer
    stages: dict[str, StageTime] = field(default_factory=dict)
    spans: dict[str, StageTime] = field(default_factory=dict)
    """By ``stage.name``; a span entered several times in one stage is summed."""
    _open: list[_OpenSpan] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times the body between synchronised edges.

        The edges' own cost lies outside the time they delimit, but for one event record and one clock reading.
        """
        timer = self.timer
        self._open.clear()
        token = _active.set(self)
        timer.synchronize()
        started = time.perf_counter_ns()
        start = timer.record()
        try:
            yield
        finally:
            _active.reset(token)
            end = timer.record()
            timer.synchronize()
            host_ms = (time.perf_counter_ns() - started) / 1e6
            self._close(name, host_ms, start, end)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Times a part of the current stage, without waiting for the device."""
        start = self.timer.record()
        started = time.perf_counter_ns()
        try:
            yield
        finally:
            host_ms = (time.perf_counter_ns() - started) / 1e6
            self._open.append(_OpenSpan(name, host_ms, start, self.timer.record()))

    def _close(self, stage: str, host_ms: float, start: Any | None, end: Any | None) -> None:
        for span in self._open:
            key = f"{stage}.{span.name}"
            before = self.spans.get(key, StageTime(host_ms=0.0))
            device = self._device_ms(span.start, span.end)
            if device is not None:
                device += before.device_ms or 0.0
            self.spans[key] = StageTime(host_ms=before.host_ms + span.host_ms, device_ms=device)
        if stage in HOST_ONLY:
            device_ms = None
        elif stage in DEVICE_SPAN:
            inner = self.spans.get(f"{stage}.{DEVICE_SPAN[stage]}")
            device_ms = inner.device_ms if inner else None
        else:
            device_ms = self._device_ms(start, end)
        self.stages[stage] = StageTime(host_ms=host_ms, device_ms=device_ms)

    def _device_ms(self, start: Any | None, end: Any | None) -> float | None:
        return None if start is None or end is None else self.timer.elapsed_ms(start, end)


_active: ContextVar[StageClock | None] = ContextVar("unfuse_active_clock", default=None)


def span(name: str) -> AbstractContextManager[None]:
    """Marks a sub-span of the running stage; free of effect where no stage is being timed."""
    clock = _active.get()
    return nullcontext() if clock is None else clock.span(name)


@contextmanager
def settled_heap() -> Iterator[None]:
    """Takes what is alive now out of every later collection.

    The objects of torch and a model take a quarter of a second to walk through, and leave cold caches to what is
    measured next.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def paused_gc() -> Iterator[None]:
    """Keeps the garbage collector from running inside a measurement; collects before it."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def resolution_ns() -> int:
    """Smallest step seen between two readings of the host clock, in ns."""
    steps = []
    for _ in range(200):
        first = time.perf_counter_ns()
        while (later := time.perf_counter_ns()) == first:
            pass
        steps.append(later - first)
    return min(steps)


def edge_cost_ms(timer: DeviceTimer, *, repeats: int = 300) -> float:
    """Host time that one timed stage adds to a run, in ms: the median of empty stages on an idle device."""
    costs = []
    clock = StageClock(timer)
    for _ in range(repeats):
        started = time.perf_counter_ns()
        with clock.stage("empty"):
            pass
        costs.append((time.perf_counter_ns() - started) / 1e6)
    return median(costs)
