"""Memory of each stage: a clock that reads bytes instead of time.

On CUDA the numbers are the caching allocator's: bytes in tensors, not what the driver has handed out. On the CPU they
are the process's resident memory as Linux counts it, whose peak can be reset (``/proc/self/clear_refs``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from unfuse.runs.schema import StageMemory

if TYPE_CHECKING:
    import torch

_STATUS: Final = Path("/proc/self/status")
_CLEAR: Final = Path("/proc/self/clear_refs")


class MemoryMeter(Protocol):
    """What counts bytes."""

    source: str

    def reset_peak(self) -> None:
        """Forget the peak so far."""

    def read(self) -> StageMemory:
        """Peak since the reset, and what is held now."""


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


def memory_meter(device: torch.device) -> MemoryMeter | None:
    """The meter of a device; None where the system offers none."""
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
    """In the place of a clock: notes the memory of each stage."""

    meter: MemoryMeter
    stages: dict[str, StageMemory] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Reads the meter around the body."""
        self.meter.reset_peak()
        yield
        self.stages[name] = self.meter.read()
