"""Has a run the machine to itself? Other work on its GPU or its CPU cores, and clocks that are held down.

A look takes a few milliseconds and is taken between samples, never inside a timed span. It says what it found and how
much, and what it could not look at and why. What counts as too much is a rule with a limit below; whether a finding
only warns or ends the run is for others to say.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from unfuse.measure.nvml import Gpu, GpuProcess, Unread, open_gpu
from unfuse.runs.schema import Finding, Isolation

if TYPE_CHECKING:
    import torch

BUSY_GPU_PCT: Final = 10
"""Utilisation of a GPU that has nothing to do for us."""
BUSY_CPU_PCT: Final = 20.0
"""Of the cores that we may use, time that others took between two looks."""
LOAD_A_CORE: Final = 1.5
"""Load average over one minute, a core, before a run: what was going on while it was being started is in it."""
SLOWED_PCT: Final = 1.0
"""Of the time between two looks, the part in which clocks were held down."""
_SETTLE_S: Final = 1.5
_START_S: Final = 0.2
_GPU_RULES: Final = ("gpu-processes", "gpu-busy", "gpu-throttled")


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuTimes:
    """CPU seconds so far, by anybody and by us, and where the clock stood."""

    at_s: float
    busy_s: float
    """Of the cores that this process may run on, all work of all processes, and what a hypervisor took."""
    own_s: float
    """Of this process and its children that have ended."""


class Host(Protocol):
    """This machine's CPU."""

    cores: int

    def load_average(self) -> float | Unread:
        """Over the last minute."""

    def times(self) -> CpuTimes | Unread:
        """Now."""

    def own_pids(self) -> frozenset[int]:
        """This process, those above it and those below it."""

    def process_name(self, pid: int) -> str | None:
        """None where it cannot be known."""


class LinuxHost:
    """A ``Host`` through ``/proc``."""

    def __init__(self, proc: Path = Path("/proc")):
        self._proc = proc
        self._cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
        self.cores = len(self._cpus)

    def load_average(self) -> float | Unread:
        """See ``Host``."""
        try:
            return os.getloadavg()[0]
        except (AttributeError, OSError):
            return Unread("this system gives no load average")

    def times(self) -> CpuTimes | Unread:
        """See ``Host``."""
        try:
            lines = (self._proc / "stat").read_text().splitlines()
        except OSError as error:
            return Unread(f"{self._proc / 'stat'} cannot be read ({error.strerror})")
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
        for place in self._proc.glob("[0-9]*/stat"):
            try:
                text = place.read_text()
            except OSError:
                continue  # it has ended since
            # The name in parentheses may hold anything; what follows the last one is state and parent.
            found[int(place.parent.name)] = int(text.rpartition(")")[2].split()[1])
        return found


@dataclass(slots=True)
class IsolationGuard:
    """Looks again and again."""

    host: Host
    gpu: Gpu | Unread
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], float] = time.perf_counter
    unseen: dict[str, str] = field(default_factory=dict)
    """Rules that could not be looked at so far, and why."""
    _last: CpuTimes | None = None
    _slowed: tuple[float, Mapping[str, float]] | None = None

    def look_at_start(self) -> Isolation:
        """The first look, before anything is measured; takes a moment, in which this process does nothing."""
        findings = [*self._load()]
        self._last = self._cpu_times()
        self.sleep(_START_S)
        findings += [*self._cpu(), *self._gpu(), *self._gpu_busy()]
        return Isolation(findings=tuple(findings), unseen=dict(self.unseen))

    def look(self) -> Isolation:
        """What has been going on since the last look."""
        return Isolation(findings=(*self._cpu(), *self._gpu()), unseen=dict(self.unseen))

    def _load(self) -> Iterable[Finding]:
        load = self.host.load_average()
        if isinstance(load, Unread):
            self.unseen["cpu-load"] = load.reason
        elif load > LOAD_A_CORE * self.host.cores:
            yield Finding(rule="cpu-load", detail=f"load average {load:.1f} on {self.host.cores} cores")

    def _cpu_times(self) -> CpuTimes | None:
        times = self.host.times()
        if isinstance(times, Unread):
            self.unseen["cpu-busy"] = times.reason
            return None
        return times

    def _cpu(self) -> Iterable[Finding]:
        before, self._last = self._last, self._cpu_times()
        now = self._last
        if before is None or now is None or now.at_s <= before.at_s:
            return
        others = (now.busy_s - before.busy_s) - (now.own_s - before.own_s)
        pct = 100 * others / (self.host.cores * (now.at_s - before.at_s))
        if pct > BUSY_CPU_PCT:
            yield Finding(
                rule="cpu-busy", detail=f"others took {pct:.0f} % of {self.host.cores} cores (limit {BUSY_CPU_PCT:g} %)"
            )

    def _gpu(self) -> Iterable[Finding]:
        if isinstance(self.gpu, Unread):
            self.unseen |= dict.fromkeys(_GPU_RULES, self.gpu.reason)
            return
        slowed = self.gpu.slowed_by()
        if isinstance(slowed, Unread):
            self.unseen["gpu-throttled"] = slowed.reason
        elif slowed:
            yield Finding(rule="gpu-throttled", detail=f"clocks held down at this moment by {', '.join(slowed)}")
        yield from self._gpu_slowed(self.gpu)
        processes = self.gpu.processes()
        if isinstance(processes, Unread):
            self.unseen["gpu-processes"] = processes.reason
        elif others := self._others(processes):
            each = ", ".join(self._named(process) for process in others[:5])
            yield Finding(rule="gpu-processes", detail=f"{len(others)} others on the GPU: {each}")

    def _gpu_slowed(self, gpu: Gpu) -> Iterable[Finding]:
        """What the moment does not show: between samples a device idles, and nothing holds it down any more."""
        before, so_far, now = self._slowed, gpu.slowed_s(), self.now()
        if isinstance(so_far, Unread):
            self.unseen["gpu-throttled"] = f"between the looks: {so_far.reason}"
            return
        self._slowed = now, so_far
        if before is None or now <= before[0]:
            return
        for reason, seconds in so_far.items():
            pct = 100 * (seconds - before[1].get(reason, 0.0)) / (now - before[0])
            if pct > SLOWED_PCT:
                yield Finding(
                    rule="gpu-throttled",
                    detail=f"clocks held down by {reason} for {pct:.0f} % of {now - before[0]:.1f} s",
                )

    def _others(self, processes: tuple[GpuProcess, ...]) -> tuple[GpuProcess, ...]:
        own = self.host.own_pids()
        others = tuple(process for process in processes if process.pid not in own)
        if len(others) < len(processes) or not others:
            return others
        # The model lies on this GPU, yet none of them is us: the driver numbers processes as the host does, and we are
        # in a container. The one that holds most is taken for us.
        self.unseen["gpu-processes"] = "the driver's process numbers are of another namespace; one was taken for ours"
        return tuple(sorted(others, key=lambda process: process.used_bytes or 0)[:-1])

    def _named(self, process: GpuProcess) -> str:
        name = self.host.process_name(process.pid) if "gpu-processes" not in self.unseen else None
        used = "" if process.used_bytes is None else f", {process.used_bytes / 2**30:.1f} GiB"
        return f"{process.pid} ({name or 'name unknown'}{used})"

    def _gpu_busy(self) -> Iterable[Finding]:
        """Utilisation looks back up to a second, to work of our own: only what stays is others'."""
        if isinstance(self.gpu, Unread):
            return
        waited = 0.0
        while True:
            pct = self.gpu.utilisation_pct()
            if isinstance(pct, Unread):
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
    """The guard of a run on a device."""
    return IsolationGuard(host=LinuxHost(), gpu=open_gpu(device))
