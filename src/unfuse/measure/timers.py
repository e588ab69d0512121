"""Device timers: how one device is synchronised and how its own clock is read.

The clock knows devices by the three methods of a timer alone. Work on a device is asynchronous: a host clock read
without ``synchronize`` times the launch, not the work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


class DeviceTimer(Protocol):
    """Interface of a device for the clock."""

    def synchronize(self) -> None:
        """Return when all work given to the device is done."""

    def record(self) -> Any | None:
        """Mark the present end of the device's queue; None if the device has no clock."""

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Return the device time between two marks, in ms; call after ``synchronize``."""


class HostTimer:
    """The CPU: work is done when the call returns, and there is no second clock."""

    def synchronize(self) -> None:
        """Do nothing: no work is outstanding."""

    def record(self) -> None:
        """Return None: the CPU has no device clock."""

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Never reached: ``record`` gives no marks."""
        raise AssertionError("the CPU has no device clock")


class CudaTimer:
    """One CUDA device, through CUDA events on its current stream."""

    def __init__(self, device: torch.device):
        self._device = device

    def synchronize(self) -> None:
        """Wait for every stream of the device."""
        import torch

        torch.cuda.synchronize(self._device)

    def record(self) -> torch.cuda.Event:
        """Record a timing event on the current stream."""
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def elapsed_ms(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Return the time between two events, in ms (resolution about 0.5 us, CUDA runtime documentation)."""
        return float(start.elapsed_time(end))


def timer_for(device: torch.device) -> DeviceTimer:
    """Return the timer of a torch device."""
    return CudaTimer(device) if device.type == "cuda" else HostTimer()
