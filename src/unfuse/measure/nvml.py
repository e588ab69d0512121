"""Readings of an NVIDIA GPU through its driver: the only module that calls NVML.

A reading that the device, the driver or this installation does not give is ``Unavailable`` with the reason, never an
estimate. The device is found by its UUID, so ``CUDA_VISIBLE_DEVICES`` and the order of devices do not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from unfuse.unavailable import Unavailable

if TYPE_CHECKING:
    import torch

_THROTTLE_BITS: Final = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal slowdown (software)",
    0x40: "thermal slowdown (hardware)",
    0x80: "power brake",
}
"""Bits of NVML's clocks event reasons that slow work down: not an idle GPU, and not clocks set by a user."""
_THROTTLE_POLICIES: Final = {"power cap": 0, "thermal slowdown": 1}
"""NVML's performance policies: a violation slows work down."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuProcess:
    """A process that has a compute context on the GPU."""

    pid: int
    """Process number of the driver: the host's, in a container."""
    used_bytes: int | None


class Gpu(Protocol):
    """Interface of a GPU's driver."""

    name: str

    def energy_mj(self) -> int | Unavailable:
        """Return the energy of the board since the driver was loaded, in mJ; it moves in steps."""

    def processes(self) -> tuple[GpuProcess, ...] | Unavailable:
        """Return the processes that compute on it."""

    def utilisation_pct(self) -> int | Unavailable:
        """Return the share of time with a running kernel, over the last moment (up to a second)."""

    def throttle_reasons(self) -> tuple[str, ...] | Unavailable:
        """Return the present reasons of throttled clocks."""

    def throttled_s(self) -> Mapping[str, float] | Unavailable:
        """Return the time with throttled clocks since the driver was loaded, by reason, in s."""


class NvmlGpu:
    """A ``Gpu`` through ``pynvml``."""

    def __init__(self, pynvml: Any, handle: Any, name: str):
        """Wrap an NVML handle; use ``open_gpu``."""
        self._pynvml = pynvml
        self._handle = handle
        self.name = name

    def energy_mj(self) -> int | Unavailable:
        """See ``Gpu``."""
        value = self._read(self._pynvml.nvmlDeviceGetTotalEnergyConsumption)
        return value if isinstance(value, Unavailable) else int(value)

    def processes(self) -> tuple[GpuProcess, ...] | Unavailable:
        """See ``Gpu``."""
        found = self._read(self._pynvml.nvmlDeviceGetComputeRunningProcesses)
        if isinstance(found, Unavailable):
            return found
        return tuple(GpuProcess(pid=int(each.pid), used_bytes=each.usedGpuMemory) for each in found)

    def utilisation_pct(self) -> int | Unavailable:
        """See ``Gpu``."""
        value = self._read(self._pynvml.nvmlDeviceGetUtilizationRates)
        return value if isinstance(value, Unavailable) else int(value.gpu)

    def throttle_reasons(self) -> tuple[str, ...] | Unavailable:
        """See ``Gpu``."""
        bits = self._read(self._pynvml.nvmlDeviceGetCurrentClocksThrottleReasons)
        if isinstance(bits, Unavailable):
            return bits
        return tuple(reason for bit, reason in _THROTTLE_BITS.items() if bits & bit)

    def throttled_s(self) -> Mapping[str, float] | Unavailable:
        """See ``Gpu``."""
        found = {}
        for name, policy in _THROTTLE_POLICIES.items():
            violation = self._read(self._pynvml.nvmlDeviceGetViolationStatus, policy)
            if isinstance(violation, Unavailable):
                return violation
            found[name] = violation.violationTime / 1e9
        return found

    def _read(self, call: Callable[..., Any], *arguments: int) -> Any:
        try:
            return call(self._handle, *arguments)
        except self._pynvml.NVMLError as error:
            return Unavailable(f"NVML: {error}")


def open_gpu(device: torch.device) -> Gpu | Unavailable:
    """Open the GPU of a torch device."""
    if device.type != "cuda":
        return Unavailable(f"no NVIDIA GPU is used: the model is on the {device.type}")
    try:
        import pynvml
    except ImportError:
        return Unavailable("nvidia-ml-py is not installed: pip install nvidia-ml-py")
    import torch

    about = torch.cuda.get_device_properties(device)
    uuid = getattr(about, "uuid", None)
    if uuid is None:
        return Unavailable("this build of torch does not say which GPU it uses")
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except pynvml.NVMLError as error:
        return Unavailable(f"NVML: {error}")
    return NvmlGpu(pynvml, handle, f"{about.name} GPU-{uuid}")
