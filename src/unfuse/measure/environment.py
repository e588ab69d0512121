"""The environment of a run: versions, code, machine, device and their load."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from unfuse._version import __version__

if TYPE_CHECKING:
    import torch

PACKAGES: Final = ("numpy", "torch", "transformers", "tokenizers", "safetensors", "pillow", "scipy", "numba")
_GPU_FIELDS: Final = (
    "name",
    "uuid",
    "driver_version",
    "memory.total",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "power.draw",
    "power.limit",
    "temperature.gpu",
    "utilization.gpu",
)


def environment(device: torch.device) -> dict[str, Any]:
    """Return a flat description for ``run.json``; a value that cannot be read is None."""
    return {
        "code_version": code_version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "cpu": cpu_name(),
        "cpu_cores": os.cpu_count(),
        "cpu_affinity": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "cpu_governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "torch_threads": _torch_threads(),
        "device_name": device_name(device),
        "cuda": _cuda(device),
        "python_hash_seed": os.environ.get("PYTHONHASHSEED"),
    }


def package_version(name: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def code_version() -> dict[str, Any]:
    """Return the version of this package, with commit and dirty flag if it runs from its git checkout."""
    root = Path(__file__).resolve().parents[3]
    commit = _git(root, "rev-parse", "HEAD") if (root / ".git").exists() else None
    status = _git(root, "status", "--porcelain") if commit else None
    return {
        "unfuse": __version__,
        "git_commit": commit,
        "git_dirty": None if status is None else bool(status),
    }


def cpu_name() -> str | None:
    """Return the CPU's name as the kernel gives it."""
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or None


def device_name(device: torch.device) -> str | None:
    """Return the name of the accelerator, or of the CPU."""
    if device.type != "cuda":
        return cpu_name()
    import torch

    return torch.cuda.get_device_name(device)


def gpu_state(index: int) -> dict[str, str] | None:
    """Return clocks, power, temperature and use by ``nvidia-smi``; None without it."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader", f"--id={index}"]
    text = _output(query)
    return None if not text else dict(zip(_GPU_FIELDS, (v.strip() for v in text.split(",")), strict=False))


def _cuda(device: torch.device) -> dict[str, Any] | None:
    if device.type != "cuda":
        return None
    import torch

    index = device.index if device.index is not None else torch.cuda.current_device()
    return {
        "runtime": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability(index))),
        "state": gpu_state(index),
    }


def _torch_threads() -> int | None:
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads()) if torch is not None else None


def _git(root: Path, *arguments: str) -> str | None:
    return _output(["git", "-C", str(root), *arguments])


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None
