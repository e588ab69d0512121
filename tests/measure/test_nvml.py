"""NVML behind one small module: its values, and the result of each failure."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from unfuse.measure.nvml import GpuProcess, NvmlGpu, open_gpu
from unfuse.unavailable import Unavailable


class NVMLError(Exception):
    """As ``pynvml`` has it."""


def fake_pynvml(**calls):
    return SimpleNamespace(NVMLError=NVMLError, nvmlInit=lambda: None, **calls)


def unsupported(*_):
    raise NVMLError("Not Supported")


def gpu(**calls):
    return NvmlGpu(fake_pynvml(**calls), "handle", "a GPU")


def test_readings():
    found = gpu(
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: 1234 if handle == "handle" else None,
        nvmlDeviceGetUtilizationRates=lambda _: SimpleNamespace(gpu=7, memory=3),
        nvmlDeviceGetComputeRunningProcesses=lambda _: [
            SimpleNamespace(pid=5, usedGpuMemory=2**30),
            SimpleNamespace(pid=6, usedGpuMemory=None),
        ],
    )
    assert found.energy_mj() == 1234
    assert found.utilisation_pct() == 7
    assert found.processes() == (GpuProcess(pid=5, used_bytes=2**30), GpuProcess(pid=6, used_bytes=None))


@pytest.mark.parametrize(
    ("bits", "reasons"),
    [
        (0x0, ()),
        (0x1, ()),  # idle
        (0x2, ()),  # clocks that a user has set
        (0x10 | 0x100, ()),  # sync boost, display clock
        (0x4, ("power cap",)),
        (0x8 | 0x40, ("hardware slowdown", "thermal slowdown (hardware)")),
        (0x1 | 0x20, ("thermal slowdown (software)",)),
        (0x80, ("power brake",)),
    ],
)
def test_what_slows_the_clocks(bits, reasons):
    assert gpu(nvmlDeviceGetCurrentClocksThrottleReasons=lambda _: bits).throttle_reasons() == reasons


def test_how_long_clocks_were_held_down():
    times = {0: 2_500_000_000, 1: 0}
    found = gpu(nvmlDeviceGetViolationStatus=lambda _, policy: SimpleNamespace(violationTime=times[policy]))
    assert found.throttled_s() == {"power cap": 2.5, "thermal slowdown": 0.0}
    pynvml = pytest.importorskip("pynvml")
    assert (pynvml.NVML_PERF_POLICY_POWER, pynvml.NVML_PERF_POLICY_THERMAL) == (0, 1)


@pytest.mark.parametrize(
    ("call", "read"),
    [
        ("nvmlDeviceGetTotalEnergyConsumption", "energy_mj"),
        ("nvmlDeviceGetComputeRunningProcesses", "processes"),
        ("nvmlDeviceGetUtilizationRates", "utilisation_pct"),
        ("nvmlDeviceGetCurrentClocksThrottleReasons", "throttle_reasons"),
        ("nvmlDeviceGetViolationStatus", "throttled_s"),
    ],
)
def test_what_a_device_does_not_report_is_a_reason(call, read):
    assert getattr(gpu(**{call: unsupported}), read)() == Unavailable("NVML: Not Supported")


def test_no_gpu_no_package_no_driver(monkeypatch):
    assert "the model is on the cpu" in open_gpu(torch.device("cpu")).reason
    cuda = torch.device("cuda", 1)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install nvidia-ml-py" in open_gpu(cuda).reason

    def no_driver():
        raise NVMLError("Driver Not Loaded")

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(name="H", uuid="u"))
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(NVMLError=NVMLError, nvmlInit=no_driver))
    assert open_gpu(cuda) == Unavailable("NVML: Driver Not Loaded")


def test_a_device_without_a_uuid(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(name="another maker's"))
    monkeypatch.setitem(sys.modules, "pynvml", fake_pynvml())
    assert "does not say which GPU" in open_gpu(torch.device("cuda", 0)).reason


def test_the_device_is_found_by_its_uuid(monkeypatch):
    """cuda:0 may be any GPU of the machine: CUDA_VISIBLE_DEVICES and CUDA's own order decide."""
    uuids = {torch.device("cuda", 0): "9fa0-7", torch.device("cuda", 1): "11b2-3"}
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(name="H200", uuid=uuids[device])
    )
    energies = {"GPU-9fa0-7": 70, "GPU-11b2-3": 30}
    module = fake_pynvml(
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid, nvmlDeviceGetTotalEnergyConsumption=energies.__getitem__
    )
    monkeypatch.setitem(sys.modules, "pynvml", module)
    for device, uuid in uuids.items():
        found = open_gpu(device)
        assert found.energy_mj() == energies[f"GPU-{uuid}"]
        assert uuid in found.name


def test_the_real_package_has_every_call():
    pynvml = pytest.importorskip("pynvml")
    for name in (
        "nvmlInit", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetTotalEnergyConsumption",
        "nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetUtilizationRates",
        "nvmlDeviceGetCurrentClocksThrottleReasons", "nvmlDeviceGetViolationStatus", "NVMLError",
    ):  # fmt: skip
        assert hasattr(pynvml, name), name
