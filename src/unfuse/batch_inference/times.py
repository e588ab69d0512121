"""Times of a run: how long each stage was busy and each part waited, and the bottleneck."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from unfuse.measure.timers import timer_for

if TYPE_CHECKING:
    import torch

WORKER_STAGES: Final = ("load", "preprocess")
DEVICE_STAGES: Final = ("encode", "prefill", "decode")
_UNKNOWN: Final = "unknown"


@dataclass(frozen=True, kw_only=True, slots=True)
class Times:
    """Seconds, summed over all workers or devices."""

    wall_s: float
    """Time from when model and workers were ready until the last answer was on disk."""
    devices: int = 1
    workers: int = 1
    """Number of workers of all devices."""
    load_s: float = 0.0
    """Host time of the workers."""
    preprocess_s: float = 0.0
    """Host time of the workers."""
    encode_s: float = 0.0
    """Between two events on the device's queue; host time on the CPU."""
    prefill_s: float = 0.0
    """``busy_s`` of the engine's continuous batch."""
    decode_s: float = 0.0
    """``busy_s`` of the engine's continuous batch."""
    write_s: float = 0.0
    """Writing answers and waiting for the disk."""
    store_s: float = 0.0
    """Writing encoded scenes to the store: one thread for each device."""
    room_wait_s: float = 0.0
    """Workers waited with a prepared scene until a device had room for it."""
    scene_wait_s: float = 0.0
    """Devices waited for a prepared scene."""

    @property
    def workers_busy(self) -> float:
        """Share of the workers' time that was load and preprocess."""
        return _share(self.load_s + self.preprocess_s, self.wall_s * self.workers)

    @property
    def device_busy(self) -> float:
        """Share of the devices' time that was encode, prefill and decode."""
        return _share(self.encode_s + self.prefill_s + self.decode_s, self.wall_s * self.devices)

    @property
    def write_busy(self) -> float:
        """Share of the time in which answers were being written."""
        return _share(self.write_s, self.wall_s)

    @property
    def store_busy(self) -> float:
        """Share of the time in which scenes were being put into the store."""
        return _share(self.store_s, self.wall_s * self.devices)

    @property
    def room_wait(self) -> float:
        """Share of the workers' time in which they waited for room."""
        return _share(self.room_wait_s, self.wall_s * self.workers)

    @property
    def scene_wait(self) -> float:
        """Share of the devices' time in which they waited for scenes."""
        return _share(self.scene_wait_s, self.wall_s * self.devices)


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolUse:
    """Use of the actors of one stage, on a cluster."""

    stage: str
    """``load``, ``preprocess``, ``encode`` or ``answer``."""
    actors: int
    """Number of processes that reported."""
    busy_s: float
    """Sum over all processes."""
    alive_s: float
    """Time from when each was ready until its last report, summed."""

    @property
    def busy(self) -> float:
        """Busy share of their time."""
        return _share(self.busy_s, self.alive_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bottleneck:
    """The part that was busy for the largest share of its time: only more of it makes a run faster."""

    where: str
    """``workers``, ``device``, ``answers file``, ``store``, or on a cluster ``actors``.

    ``unknown`` if no process lived to report.
    """
    stage: str
    """Its longest stage; ``Stage 4`` is prefill and decode together."""
    busy: float
    """Busy share of its time, 0 to 1."""

    def line(self, times: Times) -> str:
        """Return one sentence."""
        if self.where == _UNKNOWN:
            return "Bottleneck: not known, since no process that answered has lived to say how busy it was"
        if self.where == "device":
            other = f"load and preprocess waited {times.room_wait:.0%} for room"
        elif self.where == "workers":
            plural = "workers" if times.workers > 1 else "worker"
            other = f"{times.workers} {plural}; the device waited {times.scene_wait:.0%} for scenes"
        elif self.where == "actors":
            other = "more of these actors would help"
        elif self.where == "store":
            other = "a faster disk for it would help"
        else:
            other = "a faster disk would help"
        return f"Bottleneck: {self.stage} ({self.where} busy {self.busy:.0%} of the time; {other})"


def bottleneck(times: Times, pools: Sequence[PoolUse] = ()) -> Bottleneck:
    """Return the part of the pipeline that held the others back.

    Busy shares decide, not seconds: sixteen workers that were busy for a second each did not hold back one device.

    Args:
        times: times of a run.
        pools: actor pools of a run on a cluster.
    """
    if pools:
        names = {"answer": "Stage 4"}
        found = [Bottleneck(where="actors", stage=names.get(use.stage, use.stage), busy=use.busy) for use in pools]
        found.append(Bottleneck(where="answers file", stage="writing answers", busy=times.write_busy))
        return max(found, key=lambda each: each.busy)
    if not times.devices:
        return Bottleneck(where=_UNKNOWN, stage=_UNKNOWN, busy=0.0)
    stage4 = times.prefill_s + times.decode_s
    candidates = (
        Bottleneck(where="device", stage="Stage 4" if stage4 >= times.encode_s else "encode", busy=times.device_busy),
        Bottleneck(
            where="workers",
            stage="load" if times.load_s > times.preprocess_s else "preprocess",
            busy=times.workers_busy,
        ),
        Bottleneck(where="answers file", stage="writing answers", busy=times.write_busy),
        Bottleneck(where="store", stage="keeping scenes", busy=times.store_busy),
    )
    return max(candidates, key=lambda each: each.busy)


def sum_times(parts: list[Times], wall_s: float, write_s: float) -> Times:
    """Return the times of one run on several devices.

    Args:
        parts: times of each device.
        wall_s: time of the whole run.
        write_s: time of the thread that writes all answers.
    """
    summed: dict[str, Any] = {field.name: sum(getattr(part, field.name) for part in parts) for field in fields(Times)}
    return Times(**{**summed, "wall_s": wall_s, "write_s": write_s})


class Stopwatch:
    """Sums the time that a device works on something, without waiting for it."""

    def __init__(self, device: torch.device):
        self._timer = timer_for(device)
        self._open: deque[tuple[Any, Any]] = deque()
        self._seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Measure the body: between two events on the device, or on the host without a device clock."""
        start_s, start = time.perf_counter(), self._timer.record()
        try:
            yield
        finally:
            if start is None:
                self._seconds += time.perf_counter() - start_s
            else:
                self._open.append((start, self._timer.record()))
                self._collect()

    def seconds(self) -> float:
        """Return the sum so far; waits for the device."""
        self._timer.synchronize()
        self._collect()
        return self._seconds

    def _collect(self) -> None:
        while self._open and self._open[0][1].query():
            start, end = self._open.popleft()
            self._seconds += self._timer.elapsed_ms(start, end) / 1e3


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
