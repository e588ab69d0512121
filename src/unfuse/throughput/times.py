"""Where the time of a run went: how long each stage was busy, who waited for whom, and what held the run back."""

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
    """Seconds, summed over the workers or devices that share the work."""

    wall_s: float
    """From when model and workers were ready until the last answer was on the disk."""
    devices: int = 1
    workers: int = 1
    """Of all devices together."""
    load_s: float = 0.0
    """Host time of the workers."""
    preprocess_s: float = 0.0
    """The same."""
    encode_s: float = 0.0
    """Between two events on the device's queue; host time on the CPU."""
    prefill_s: float = 0.0
    """As the engine's continuous batch says."""
    decode_s: float = 0.0
    """The same."""
    write_s: float = 0.0
    """Writing answers and waiting for the disk to have them."""
    store_s: float = 0.0
    """Putting encoded scenes into the store: one thread for each device."""
    room_wait_s: float = 0.0
    """Workers held prepared scenes that nobody could take."""
    scene_wait_s: float = 0.0
    """Devices had nothing to do until a scene was prepared."""

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
    """What the actors of one stage did with their time, on a cluster."""

    stage: str
    """``load``, ``preprocess``, ``encode`` or ``answer``."""
    actors: int
    """Processes that did something."""
    busy_s: float
    """Of all of them."""
    alive_s: float
    """From when each was ready until it last said something."""

    @property
    def busy(self) -> float:
        """Share of their time."""
        return _share(self.busy_s, self.alive_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bottleneck:
    """What was busy for the largest share of its time: more of it, and nothing else, makes a run faster."""

    where: str
    """``workers``, ``device``, ``answers file``, ``store``, or on a cluster ``actors``.

    ``unknown`` where no process lived to say.
    """
    stage: str
    """The largest part of it: a stage, ``Stage 4`` for prefill and decode together."""
    busy: float
    """Share of its time, 0 to 1."""

    def line(self, times: Times) -> str:
        """One sentence for a reader."""
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
    """Which part of the pipeline held the others back.

    Shares, not seconds: sixteen workers that are busy for a second each are not what one device waited for.

    Args:
        times: of a run.
        pools: of a run on a cluster, where each stage has actors of its own.
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


def together(parts: list[Times], wall_s: float, write_s: float) -> Times:
    """One run on several devices.

    Args:
        parts: of each device.
        wall_s: of the whole run.
        write_s: of the one that writes for all.
    """
    summed: dict[str, Any] = {field.name: sum(getattr(part, field.name) for part in parts) for field in fields(Times)}
    return Times(**{**summed, "wall_s": wall_s, "write_s": write_s})


class Stopwatch:
    """Adds up how long a device works on something, without waiting for it."""

    def __init__(self, device: torch.device):
        self._timer = timer_for(device)
        self._open: deque[tuple[Any, Any]] = deque()
        self._seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Measures the body: between two marks on the device's queue, or on the host where there are none."""
        begun, start = time.perf_counter(), self._timer.record()
        try:
            yield
        finally:
            if start is None:
                self._seconds += time.perf_counter() - begun
            else:
                self._open.append((start, self._timer.record()))
                self._collect()

    def seconds(self) -> float:
        """So far; waits for the device."""
        self._timer.synchronize()
        self._collect()
        return self._seconds

    def _collect(self) -> None:
        while self._open and self._open[0][1].query():
            start, end = self._open.popleft()
            self._seconds += self._timer.elapsed_ms(start, end) / 1e3


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
