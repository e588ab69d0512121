"""Memory of each stage: a clock that reads bytes instead of time.

On CUDA the numbers are the caching allocator's: bytes in tensors, not bytes that the driver has allocated. On the CPU
they are the process's resident memory as Linux counts it; its peak can be reset (``/proc/self/clear_refs``).

``MemoryTrack`` reads the allocation over time, in a thread of its own: for a pass that is in no statistic.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from unfuse.measure import host_time
from unfuse.records.schema import StageMemory

if TYPE_CHECKING:
    import torch

_STATUS: Final = Path("/proc/self/status")
_CLEAR: Final = Path("/proc/self/clear_refs")
_PAGES: Final = Path("/proc/self/statm")
_MEMINFO: Final = Path("/proc/meminfo")
_PERIOD_S: Final = 0.01
_MAX_READINGS: Final = 2000


class MemoryMeter(Protocol):
    """Interface of a counter of memory."""

    source: str

    def reset_peak(self) -> None:
        """Forget the peak so far."""

    def read(self) -> StageMemory:
        """Return the peak since the reset and the present allocation."""

    def allocated(self) -> int:
        """Return the present allocation in bytes, without waiting for the device."""


class CudaMemory:
    """The caching allocator of one CUDA device."""

    source = "CUDA allocator"

    def __init__(self, device: torch.device):
        self._device = device

    def reset_peak(self) -> None:
        """See ``MemoryMeter``."""
        import torch

        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)

    def read(self) -> StageMemory:
        """See ``MemoryMeter``."""
        import torch

        torch.cuda.synchronize(self._device)
        return StageMemory(
            peak_bytes=torch.cuda.max_memory_allocated(self._device),
            resident_bytes=torch.cuda.memory_allocated(self._device),
        )

    def allocated(self) -> int:
        """See ``MemoryMeter``."""
        import torch

        return int(torch.cuda.memory_allocated(self._device))


class ProcessMemory:
    """This process, as Linux counts it."""

    source = "process (Linux VmHWM, VmRSS)"

    def reset_peak(self) -> None:
        """See ``MemoryMeter``."""
        _CLEAR.write_text("5")  # proc(5): resets the peak resident set size

    def read(self) -> StageMemory:
        """See ``MemoryMeter``."""
        found = dict(re.findall(r"^(VmHWM|VmRSS):\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE))
        return StageMemory(peak_bytes=int(found["VmHWM"]) * 1024, resident_bytes=int(found["VmRSS"]) * 1024)

    def allocated(self) -> int:
        """See ``MemoryMeter``."""
        return int(_PAGES.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory_meter(device: torch.device) -> MemoryMeter | None:
    """Return the meter of a device; None if the system has none."""
    if device.type == "cuda":
        return CudaMemory(device)
    meter = ProcessMemory()
    try:
        meter.reset_peak()
        meter.read()
    except (OSError, KeyError):
        return None
    return meter


@dataclass(slots=True)
class MemoryClock:
    """A clock that records the memory of each stage instead of its time."""

    meter: MemoryMeter
    stages: dict[str, StageMemory] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Read the meter around the body."""
        self.meter.reset_peak()
        yield
        self.stages[name] = self.meter.read()


@dataclass(slots=True)
class MemoryTrack:
    """Reads a meter every few milliseconds while its ``with`` block runs, and at each ``note``."""

    meter: MemoryMeter
    zero_ns: int = 0
    """Reading of ``perf_counter_ns`` that times count from."""
    readings: list[tuple[float, int]] = field(default_factory=list)
    """(ms, bytes) in order; at most a few thousand, thinned out evenly beyond that."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def note(self) -> None:
        """Read once, now."""
        with self._lock:
            self.readings.append(((host_time.now_ns() - self.zero_ns) / 1e6, self.meter.allocated()))

    def __enter__(self) -> MemoryTrack:
        self.note()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self.note()

    def _watch(self) -> None:
        period_s = _PERIOD_S
        while not self._ended.wait(period_s):
            self.note()
            if len(self.readings) >= _MAX_READINGS:
                with self._lock:
                    del self.readings[1::2]
                period_s *= 2


def available_bytes(device: torch.device) -> int | None:
    """Return the memory that new tensors on a device can take; None if the system does not say."""
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", _MEMINFO.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
