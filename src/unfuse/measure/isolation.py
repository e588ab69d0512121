"""Find other work on the GPU or the CPU cores of a run, and throttled clocks.

A check takes a few milliseconds and runs between samples, never inside a timed span. It returns findings with measured
values, and the rules that could not be checked with the reason. Each rule has its limit below. The caller decides
whether a finding warns or ends the run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from unfuse.measure.nvml import Gpu, GpuProcess, open_gpu
from unfuse.records.schema import Finding, Isolation
from unfuse.unavailable import Unavailable

if TYPE_CHECKING:
    import torch

BUSY_GPU_PCT: Final = 10
"""Limit of the GPU's utilisation while this process is idle."""
BUSY_CPU_PCT: Final = 20.0
"""Limit of the time that others took between two checks, as a share of the cores of this process."""
LOAD_A_CORE: Final = 1.5
"""Limit of the one-minute load average per core before a run; starting the run is part of it."""
THROTTLED_PCT: Final = 1.0
"""Limit of the time with throttled clocks, as a share of the time between two checks."""
_SETTLE_S: Final = 1.5
_START_S: Final = 0.2
_GPU_RULES: Final = ("gpu-processes", "gpu-busy", "gpu-throttled")


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuTimes:
    """CPU seconds of all processes and of this one, at a time."""

    at_s: float
    busy_s: float
    """Work of all processes on the cores of this process, and time taken by a hypervisor."""
    own_s: float
    """Work of this process and its ended children."""


class Host(Protocol):
    """Interface of a machine's CPU."""

    cores: int

    def load_average(self) -> float | Unavailable:
        """Return the load average of the last minute."""

    def times(self) -> CpuTimes | Unavailable:
        """Return the present CPU times."""

    def own_pids(self) -> frozenset[int]:
        """Return this process, its ancestors and its descendants."""

    def process_name(self, pid: int) -> str | None:
        """Return the name of a process, or None if it cannot be read."""


class LinuxHost:
    """A ``Host`` through ``/proc``."""

    def __init__(self, proc: Path = Path("/proc")):
        self._proc = proc
        self._cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
        self.cores = len(self._cpus)

    def load_average(self) -> float | Unavailable:
        """See ``Host``."""
        try:
            return os.getloadavg()[0]
        except (AttributeError, OSError):
            return Unavailable("this system gives no load average")

    def times(self) -> CpuTimes | Unavailable:
        """See ``Host``."""
        try:
            lines = (self._proc / "stat").read_text().splitlines()
        except OSError as error:
            return Unavailable(f"{self._proc / 'stat'} cannot be read ({error.strerror})")
        wanted = {f"cpu{index}" for index in self._cpus}
        ticks = 0
        for line in lines:
            name, *numbers = line.split()
            if name in wanted:
                user, nice, system, _idle, _wait, irq, softirq, steal = map(int, numbers[:8])
                ticks += user + nice + system + irq + softirq + steal
        own = os.times()
        return CpuTimes(
            at_s=time.perf_counter(),
            busy_s=ticks / os.sysconf("SC_CLK_TCK"),
            own_s=own.user + own.system + own.children_user + own.children_system,
        )

    def own_pids(self) -> frozenset[int]:
        """See ``Host``."""
        parents = self._parents()
        own, pid = {os.getpid()}, os.getpid()
        while (pid := parents.get(pid, 0)) > 1:
            own.add(pid)
        below = {os.getpid()}
        while below:
            below = {child for child, parent in parents.items() if parent in below}
            own |= below
        return frozenset(own)

    def process_name(self, pid: int) -> str | None:
        """See ``Host``."""
        try:
            return (self._proc / str(pid) / "comm").read_text().strip()
        except OSError:
            return None

    def _parents(self) -> dict[int, int]:
        found = {}
        for path in self._proc.glob("[0-9]*/stat"):
            try:
                text = path.read_text()
            except OSError:
                continue  # the process has ended
            # The name in parentheses may hold anything; state and parent follow the last parenthesis.
            found[int(path.parent.name)] = int(text.rpartition(")")[2].split()[1])
        return found


@dataclass(slots=True)
class IsolationGuard:
    """Checks the rules of isolation, again and again."""

    host: Host
    gpu: Gpu | Unavailable
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], float] = time.perf_counter
    unseen: dict[str, str] = field(default_factory=dict)
    """Rules that could not be checked so far, with the reason."""
    _last: CpuTimes | None = None
    _throttled: tuple[float, Mapping[str, float]] | None = None

    def check_at_start(self) -> Isolation:
        """Check before anything is measured; this process is idle meanwhile."""
        findings = [*self._load()]
        self._last = self._cpu_times()
        self.sleep(_START_S)
        findings += [*self._cpu(), *self._gpu(), *self._gpu_busy()]
        return Isolation(findings=tuple(findings), unseen=dict(self.unseen))

    def check(self) -> Isolation:
        """Check the time since the last check."""
        return Isolation(findings=(*self._cpu(), *self._gpu()), unseen=dict(self.unseen))

    def _load(self) -> Iterable[Finding]:
        load = self.host.load_average()
        if isinstance(load, Unavailable):
            self.unseen["cpu-load"] = load.reason
        elif load > LOAD_A_CORE * self.host.cores:
            yield Finding(rule="cpu-load", detail=f"load average {load:.1f} on {self.host.cores} cores")

    def _cpu_times(self) -> CpuTimes | None:
        times = self.host.times()
        if isinstance(times, Unavailable):
            self.unseen["cpu-busy"] = times.reason
            return None
        return times

    def _cpu(self) -> Iterable[Finding]:
        before, self._last = self._last, self._cpu_times()
        now = self._last
        if before is None or now is None or now.at_s <= before.at_s:
            return
        others = (now.busy_s - before.busy_s) - (now.own_s - before.own_s)
        # Ticks of the system's counters may amount to a little more than the time between two checks.
        pct = min(100.0, 100 * others / (self.host.cores * (now.at_s - before.at_s)))
        if pct > BUSY_CPU_PCT:
            yield Finding(
                rule="cpu-busy", detail=f"others took {pct:.0f} % of {self.host.cores} cores (limit {BUSY_CPU_PCT:g} %)"
            )

    def _gpu(self) -> Iterable[Finding]:
        if isinstance(self.gpu, Unavailable):
            self.unseen |= dict.fromkeys(_GPU_RULES, self.gpu.reason)
            return
        reasons = self.gpu.throttle_reasons()
        if isinstance(reasons, Unavailable):
            self.unseen["gpu-throttled"] = reasons.reason
        elif reasons:
            yield Finding(rule="gpu-throttled", detail=f"clocks held down at this moment by {', '.join(reasons)}")
        yield from self._gpu_throttled(self.gpu)
        processes = self.gpu.processes()
        if isinstance(processes, Unavailable):
            self.unseen["gpu-processes"] = processes.reason
        elif others := self._others(processes):
            each = ", ".join(self._named(process) for process in others[:5])
            yield Finding(rule="gpu-processes", detail=f"{len(others)} others on the GPU: {each}")

    def _gpu_throttled(self, gpu: Gpu) -> Iterable[Finding]:
        """Check throttling over time: between samples the device is idle, and its present clocks say nothing."""
        before, so_far, now = self._throttled, gpu.throttled_s(), self.now()
        if isinstance(so_far, Unavailable):
            self.unseen["gpu-throttled"] = f"between two checks: {so_far.reason}"
            return
        self._throttled = now, so_far
        if before is None or now <= before[0]:
            return
        for reason, seconds in so_far.items():
            pct = min(100.0, 100 * (seconds - before[1].get(reason, 0.0)) / (now - before[0]))
            if pct > THROTTLED_PCT:
                yield Finding(
                    rule="gpu-throttled",
                    detail=f"clocks held down by {reason} for {pct:.0f} % of {now - before[0]:.1f} s",
                )

    def _others(self, processes: tuple[GpuProcess, ...]) -> tuple[GpuProcess, ...]:
        own = self.host.own_pids()
        others = tuple(process for process in processes if process.pid not in own)
        if len(others) < len(processes) or not others:
            return others
        # The model is on this GPU, yet no process is this one: in a container the driver gives the host's process
        # numbers. The process with the most memory is taken for this one.
        self.unseen["gpu-processes"] = "the driver's process numbers are of another namespace; one was taken for ours"
        return tuple(sorted(others, key=lambda process: process.used_bytes or 0)[:-1])

    def _named(self, process: GpuProcess) -> str:
        name = self.host.process_name(process.pid) if "gpu-processes" not in self.unseen else None
        used = "" if process.used_bytes is None else f", {process.used_bytes / 2**30:.1f} GiB"
        return f"{process.pid} ({name or 'name unknown'}{used})"

    def _gpu_busy(self) -> Iterable[Finding]:
        """Check utilisation until it settles: it covers up to a second, with work of this process."""
        if isinstance(self.gpu, Unavailable):
            return
        waited = 0.0
        while True:
            pct = self.gpu.utilisation_pct()
            if isinstance(pct, Unavailable):
                self.unseen["gpu-busy"] = pct.reason
                return
            if pct <= BUSY_GPU_PCT:
                return
            if waited >= _SETTLE_S:
                break
            self.sleep(_START_S)
            waited += _START_S
        yield Finding(rule="gpu-busy", detail=f"{pct} % busy while this process did nothing (limit {BUSY_GPU_PCT} %)")


def guard_for(device: torch.device) -> IsolationGuard:
    """Return the guard of a run on a device."""
    return IsolationGuard(host=LinuxHost(), gpu=open_gpu(device))
