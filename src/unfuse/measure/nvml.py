"""What the driver of an NVIDIA GPU tells about it: the only module that speaks to NVML.

A reading that the device, the driver or this installation does not give is an ``Unread`` with the reason; nothing is
estimated in its place. The device is found by its UUID, so ``CUDA_VISIBLE_DEVICES`` and the order of devices do not
matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    import torch

_SLOWING: Final = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal slowdown (software)",
    0x40: "thermal slowdown (hardware)",
    0x80: "power brake",
}
"""Bits of NVML's clocks event reasons that slow work down. Idling and clocks that a user has set are none of them."""
_POLICIES: Final = {"power cap": 0, "thermal slowdown": 1}
"""Of NVML's performance policies, those whose violations slow work down."""


@dataclass(frozen=True, slots=True)
class Unread:
    """In the place of a reading."""

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuProcess:
    """A process that has a compute context on the GPU."""

    pid: int
    """As the driver numbers it: of the host, in a container."""
    used_bytes: int | None


class Gpu(Protocol):
    """One GPU as its driver sees it."""

    name: str

    def energy_mj(self) -> int | Unread:
        """Energy of the board since the driver was loaded, in mJ; moves in steps."""

    def processes(self) -> tuple[GpuProcess, ...] | Unread:
        """Who computes on it."""

    def utilisation_pct(self) -> int | Unread:
        """Share of the last moment (up to a second) in which a kernel ran."""

    def slowed_by(self) -> tuple[str, ...] | Unread:
        """What keeps its clocks down right now."""

    def slowed_s(self) -> Mapping[str, float] | Unread:
        """For how long clocks have been held down since the driver was loaded, by what did it."""


class NvmlGpu:
    """A ``Gpu`` through ``pynvml``."""

    def __init__(self, pynvml: Any, handle: Any, name: str):
        """For ``open_gpu``."""
        self._pynvml = pynvml
        self._handle = handle
        self.name = name

    def energy_mj(self) -> int | Unread:
        """See ``Gpu``."""
        value = self._read(self._pynvml.nvmlDeviceGetTotalEnergyConsumption)
        return value if isinstance(value, Unread) else int(value)

    def processes(self) -> tuple[GpuProcess, ...] | Unread:
        """See ``Gpu``."""
        found = self._read(self._pynvml.nvmlDeviceGetComputeRunningProcesses)
        if isinstance(found, Unread):
            return found
        return tuple(GpuProcess(pid=int(each.pid), used_bytes=each.usedGpuMemory) for each in found)

    def utilisation_pct(self) -> int | Unread:
        """See ``Gpu``."""
        value = self._read(self._pynvml.nvmlDeviceGetUtilizationRates)
        return value if isinstance(value, Unread) else int(value.gpu)

    def slowed_by(self) -> tuple[str, ...] | Unread:
        """See ``Gpu``."""
        bits = self._read(self._pynvml.nvmlDeviceGetCurrentClocksThrottleReasons)
        if isinstance(bits, Unread):
            return bits
        return tuple(reason for bit, reason in _SLOWING.items() if bits & bit)

    def slowed_s(self) -> Mapping[str, float] | Unread:
        """See ``Gpu``."""
        found = {}
        for name, policy in _POLICIES.items():
            violation = self._read(self._pynvml.nvmlDeviceGetViolationStatus, policy)
            if isinstance(violation, Unread):
                return violation
            found[name] = violation.violationTime / 1e9
        return found

    def _read(self, call: Callable[..., Any], *arguments: int) -> Any:
        try:
            return call(self._handle, *arguments)
        except self._pynvml.NVMLError as error:
            return Unread(f"NVML: {error}")


def open_gpu(device: torch.device) -> Gpu | Unread:
    """The GPU that a torch device is."""
    if device.type != "cuda":
        return Unread(f"no NVIDIA GPU is used: the model is on the {device.type}")
    try:
        import pynvml
    except ImportError:
        return Unread("nvidia-ml-py is not installed: pip install nvidia-ml-py")
    import torch

    about = torch.cuda.get_device_properties(device)
    uuid = getattr(about, "uuid", None)
    if uuid is None:
        return Unread("this build of torch does not say which GPU it uses")
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except pynvml.NVMLError as error:
        return Unread(f"NVML: {error}")
    return NvmlGpu(pynvml, handle, f"{about.name} GPU-{uuid}")
