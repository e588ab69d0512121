"""The isolation guard: every rule fires on its own cause, and on no other."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from unfuse.measure.isolation import CpuTimes, IsolationGuard, LinuxHost
from unfuse.measure.nvml import GpuProcess
from unfuse.testing import FakeGpu
from unfuse.unavailable import Unavailable

GIB = 2**30


class FakeHost:
    """A machine of 4 cores with a load set by hand."""

    cores = 4

    def __init__(self, load=0.5, own=(100, 101)):
        self.load = load
        self.own = frozenset(own)
        self.now = CpuTimes(at_s=0.0, busy_s=1000.0, own_s=10.0)

    def passes(self, seconds, *, own=0.0, others=0.0):
        now = self.now
        self.now = CpuTimes(at_s=now.at_s + seconds, busy_s=now.busy_s + own + others, own_s=now.own_s + own)

    def load_average(self):
        return self.load

    def times(self):
        return self.now

    def own_pids(self):
        return self.own

    def process_name(self, pid):
        return {7: "python", 8: "Xorg"}.get(pid)


def guard(gpu=None, host=None, **sleeps):
    gpu, host = gpu or FakeGpu(), host or FakeHost()
    sleep = sleeps.get("sleep", lambda seconds: host.passes(seconds))
    return IsolationGuard(host=host, gpu=gpu, sleep=sleep)


def rules(isolation):
    return [finding.rule for finding in isolation.findings]


def test_a_machine_to_itself_has_no_findings():
    gpu, host = FakeGpu(), FakeHost()
    gpu.running = (GpuProcess(pid=100, used_bytes=15 * GIB), GpuProcess(pid=101, used_bytes=GIB))
    watching = guard(gpu, host)
    assert watching.check_at_start().findings == ()
    host.passes(1.0, own=4.0)
    found = watching.check()
    assert found.findings == (), "our own four busy cores are not others'"
    assert found.unseen == {}


def test_other_processes_on_the_gpu():
    gpu = FakeGpu()
    gpu.running = (GpuProcess(pid=100, used_bytes=GIB), GpuProcess(pid=7, used_bytes=3 * GIB))
    (finding,) = guard(gpu).check().findings
    assert finding.rule == "gpu-processes"
    assert finding.detail == "1 others on the GPU: 7 (python, 3.0 GiB)"


def test_our_own_children_are_not_others():
    gpu = FakeGpu()
    gpu.running = (GpuProcess(pid=101, used_bytes=GIB),)
    assert guard(gpu).check().findings == ()


def test_in_a_container_one_unknown_process_is_ours_and_two_are_not():
    gpu = FakeGpu()
    gpu.running = (GpuProcess(pid=40_001, used_bytes=15 * GIB),)
    watching = guard(gpu)
    found = watching.check()
    assert found.findings == ()
    assert "another namespace" in found.unseen["gpu-processes"]
    gpu.running += (GpuProcess(pid=8, used_bytes=2 * GIB),)
    (finding,) = watching.check().findings
    assert finding.detail == "1 others on the GPU: 8 (name unknown, 2.0 GiB)", "its number names nobody here"


@pytest.mark.parametrize(("slow", "expected"), [((), []), (("power cap",), ["gpu-throttled"])])
def test_throttling(slow, expected):
    gpu = FakeGpu()
    gpu.slow = slow
    assert rules(guard(gpu).check()) == expected


@pytest.mark.parametrize(("throttled_s", "expected"), [(0.09, []), (0.11, ["gpu-throttled"])])
def test_throttling_between_two_checks(throttled_s, expected):
    """10 s: the limit of 1 % is 0.1 s. Work before the first reading does not count."""
    gpu, now = FakeGpu(), [0.0]
    gpu.slow_s = {"power cap": 500.0, "thermal slowdown": 0.0}
    watching = IsolationGuard(host=FakeHost(), gpu=gpu, sleep=lambda _: None, now=lambda: now[0])
    assert rules(watching.check_at_start()) == []
    now[0] = 10.0
    gpu.slow_s["power cap"] += throttled_s
    assert rules(watching.check()) == expected
    now[0] = 20.0
    assert rules(watching.check()) == []


def test_duration_of_throttling_is_reported():
    gpu, now = FakeGpu(), [0.0]
    gpu.slow_s = {"thermal slowdown": 1.0}
    watching = IsolationGuard(host=FakeHost(), gpu=gpu, sleep=lambda _: None, now=lambda: now[0])
    watching.check()
    now[0], gpu.slow_s = 4.0, {"thermal slowdown": 2.0}
    (finding,) = watching.check().findings
    assert finding.detail == "clocks held down by thermal slowdown for 25 % of 4.0 s"


def test_a_busy_gpu_at_the_start():
    gpu = FakeGpu()
    gpu.busy_pct = 63
    (finding,) = guard(gpu).check_at_start().findings
    assert finding.rule == "gpu-busy"
    assert "63 %" in finding.detail
    assert rules(guard(gpu).check()) == [], "later on it is our own work"


def test_our_own_work_just_before_is_not_others():
    gpu = FakeGpu()
    gpu.busy_pct = 90

    def settles(_):
        gpu.busy_pct = max(0, gpu.busy_pct - 40)

    assert guard(gpu, sleep=settles).check_at_start().findings == ()


@pytest.mark.parametrize(("others", "expected"), [(0.7, []), (0.9, ["cpu-busy"])])
def test_others_on_the_cpu_between_two_looks(others, expected):
    """4 cores for one second: the limit of 20 % is 0.8 s."""
    host = FakeHost()
    watching = guard(host=host)
    watching.check_at_start()
    host.passes(1.0, own=2.0, others=others)
    found = watching.check()
    assert rules(found) == expected
    host.passes(1.0, own=2.0)
    assert rules(watching.check()) == [], "only what came since the last look counts"


def test_others_on_the_cpu_at_the_start():
    host = FakeHost()
    watching = guard(host=host, sleep=lambda seconds: host.passes(seconds, others=2 * seconds))
    (finding,) = watching.check_at_start().findings
    assert finding.detail == "others took 50 % of 4 cores (limit 20 %)"


@pytest.mark.parametrize(("load", "expected"), [(6.0, []), (6.1, ["cpu-load"])])
def test_load_average(load, expected):
    assert rules(guard(host=FakeHost(load=load)).check_at_start()) == expected


def test_unreadable_counters_are_reported():
    gpu, host = FakeGpu(), FakeHost()
    gpu.unread = Unavailable("NVML: Not Supported")
    host.load = Unavailable("this system gives no load average")
    host.now = Unavailable("/proc/stat cannot be read")
    watching = IsolationGuard(host=host, gpu=gpu, sleep=lambda _: None)
    found = watching.check_at_start()
    assert found.findings == ()
    assert set(found.unseen) == {"gpu-processes", "gpu-busy", "gpu-throttled", "cpu-busy", "cpu-load"}
    assert found.unseen["gpu-busy"] == "NVML: Not Supported"
    without = IsolationGuard(host=FakeHost(), gpu=Unavailable("no GPU"), sleep=lambda _: None).check_at_start()
    assert without.unseen == dict.fromkeys(("gpu-processes", "gpu-busy", "gpu-throttled"), "no GPU")


def test_proc_as_linux_writes_it(tmp_path):
    cpu = min(os.sched_getaffinity(0))
    (tmp_path / "stat").write_text(
        f"cpu  900 0 0 0 0 0 0 0 0 0\ncpu{cpu} 100 20 30 4000 500 5 6 7 0 0\ncpu9999 800 0 0 0 0 0 0 0 0 0\nintr 5\n"
    )
    for pid, parent in ((os.getpid(), 50), (50, 1), (60, os.getpid()), (61, 60), (70, 1)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a) name) S {parent} 0 0")
    (tmp_path / "70" / "comm").write_text("other\n")
    host = LinuxHost(tmp_path)
    ticks = os.sysconf("SC_CLK_TCK")
    assert host.times().busy_s == (100 + 20 + 30 + 5 + 6 + 7) / ticks, "neither idle nor waiting; our cores only"
    assert host.own_pids() == {os.getpid(), 50, 60, 61}
    assert host.process_name(70) == "other"
    assert host.process_name(71) is None
    assert isinstance(LinuxHost(tmp_path / "none").times(), Unavailable)


def test_this_machine():
    """The real thing: a child that computes is ours while it runs, and so is its time once it has ended."""
    host = LinuxHost()
    before = host.times()
    if isinstance(before, Unavailable):
        pytest.skip(before.reason)
    child = subprocess.Popen([sys.executable, "-c", "sum(range(3 * 10**6)); input()"], stdin=subprocess.PIPE)
    try:
        assert {os.getpid(), os.getppid(), child.pid} - {1} <= host.own_pids()
    finally:
        child.communicate(b"\n")
    after = host.times()
    assert after.at_s > before.at_s
    assert after.own_s - before.own_s > 0
    assert host.cores == len(os.sched_getaffinity(0))
