"""Time calls and record the measurements."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

import torch

from unfuse.measure.clock import paused_gc


@dataclass
class Bench:
    """Measurements so far: medians in ms, and other numbers, by name."""

    repeats: int
    budget: float
    started: float = field(default_factory=time.perf_counter)
    raw_ms: dict[str, list[float]] = field(default_factory=dict)
    found: dict[str, float] = field(default_factory=dict)
    quartiles: dict[str, list[float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    """Device, versions, ceilings."""
    notes: list[str] = field(default_factory=list)

    def log(self, text: str) -> None:
        """Print a line of progress."""
        print(f"{time.perf_counter() - self.started:6.1f} s  {text}", file=sys.stderr, flush=True)

    def timed(self, name: str, work: Callable[[], object], *, warmups: int = 3) -> None:
        """Time a call, synchronised before and after."""
        values = []
        with paused_gc():
            for turn in range(warmups + self.repeats):
                wait_for_device()
                start = time.perf_counter_ns()
                work()
                wait_for_device()
                if turn >= warmups:
                    values.append((time.perf_counter_ns() - start) / 1e6)
        self.raw_ms[name] = values
        self.step(name, name, steps=1)

    def step(self, name: str, many: str, few: str | None = None, *, steps: int) -> None:
        """Record the time of one of the ``steps`` by which ``many`` exceeds ``few``; quartiles of paired values."""
        more, less = self.raw_ms[many], self.raw_ms[few] if few else [0.0] * len(self.raw_ms[many])
        self.found[name] = (median(more) - median(less)) / steps
        self.quartiles[name] = quantiles([(a - b) / steps for a, b in zip(more, less, strict=True)], method="inclusive")
        self.log(f"{name}: {self.found[name]:.3f} ms")

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Run an independent part; record the reason of a failure and continue."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  # one part must not cost the others
            reason = (str(error).strip() or "no message").splitlines()[0][:160].replace("|", "/")
            self.failed[name] = f"failed: {type(error).__name__}: {reason}"
            self.log(f"{name}: {self.failed[name]}")
        release_memory()

    def require(self, seconds: float) -> None:
        """Refuse a part that would exceed the budget."""
        if time.perf_counter() - self.started + seconds > self.budget:
            raise TimeoutError(f"not started, its {seconds:.0f} s would end after {self.budget:.0f} s")

    def cell(self, name: str, unit: str = "ms", part: str = "") -> str:
        """Return a number for the table, or the reason why its part of the run gave none."""
        if name not in self.found:
            return self.failed.get(part or name, "not measured")
        digits = 2 if unit in ("ms", "GiB") else 3
        return f"{self.found[name]:.{digits}{'f' if digits == 2 else 'g'}} {unit}".rstrip()


def wait_for_device() -> None:
    """Wait until the device has finished its work."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def release_memory() -> None:
    """Release unreferenced memory."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
