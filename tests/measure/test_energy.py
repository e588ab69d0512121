"""Joules from a counter that moves in steps, against a device of known power."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from unfuse.measure.energy import LEAST_STEPS, LONGEST, counter_steps, work_energy
from unfuse.testing import FakeGpu, FakeTime
from unfuse.unavailable import Unavailable


def measure(gpu, *, watts, call_s, seconds=2.0):
    steps = counter_steps(gpu, gpu.clock)
    assert not isinstance(steps, Unavailable), steps
    return work_energy(
        gpu, lambda: gpu.work(call_s, watts), lambda: None, steps, seconds=seconds, clock=gpu.clock
    ), steps


@pytest.mark.parametrize("period_s", [0.02, 0.05, 0.1])
@pytest.mark.parametrize("call_s", [0.0007, 0.03, 0.2, 9.0])
def test_known_power_is_found_within_the_stated_resolution(period_s, call_s):
    gpu = FakeGpu(idle_watts=80, period_s=period_s)
    found, steps = measure(gpu, watts=400, call_s=call_s)
    assert abs(found.joules - 400 * call_s) <= found.resolution_joules
    assert found.resolution_joules <= 400 * call_s * 0.015, "half a step in forty, and the polling"
    assert found.seconds >= max(2.0, LEAST_STEPS * period_s)
    assert found.calls == pytest.approx(found.seconds / call_s, abs=1.5)
    assert steps.period_s == pytest.approx(period_s, abs=0.001)
    assert steps.step_mj == pytest.approx(1000 * 80 * period_s, rel=0.05)
    assert steps.idle_watts == pytest.approx(80, rel=0.05)


WATTS = st.floats(1, 1000)
PERIOD_S = st.floats(0.005, 0.19)


@given(WATTS, st.floats(5, 150), PERIOD_S, st.floats(0.0005, 3.0), st.floats(0.0, 0.2))
@example(watts=20.0, idle_watts=30.0, period_s=0.15, call_s=0.0005, phase_s=0.0)
def test_any_power_period_and_phase(watts, idle_watts, period_s, call_s, phase_s):
    gpu = FakeGpu(idle_watts=idle_watts, period_s=period_s)
    gpu.clock.sleep(phase_s)
    found, _ = measure(gpu, watts=watts, call_s=call_s)
    assert abs(found.joules - watts * call_s) <= found.resolution_joules


@given(st.lists(st.tuples(st.floats(0.0005, 0.4), WATTS), min_size=1, max_size=6), PERIOD_S, st.floats(0.0, 0.2))
def test_power_that_changes_within_a_call(parts, period_s, phase_s):
    """The last step is then drawn at another power than the mean, up to all of a call's energy in a short peak."""
    gpu = FakeGpu(idle_watts=80, period_s=period_s)
    gpu.clock.sleep(phase_s)
    steps = counter_steps(gpu, gpu.clock)
    calls = [0]

    def work():
        calls[0] += 1
        for seconds, watts in parts:
            gpu.work(seconds, watts)

    found = work_energy(gpu, work, lambda: None, steps, seconds=2.0, clock=gpu.clock)
    assert found.calls == calls[0]
    assert abs(found.joules - sum(seconds * watts for seconds, watts in parts)) <= found.resolution_joules


class IrregularCounter(FakeGpu):
    """Updates its counter after intervals that differ, in turn."""

    def __init__(self, intervals_s):
        super().__init__(idle_watts=80)
        self._intervals_end_s = [*accumulate(intervals_s)]

    def last_update_s(self):
        rounds, rest = divmod(self.clock.perf_counter(), self._intervals_end_s[-1])
        return rounds * self._intervals_end_s[-1] + max([0.0, *(end for end in self._intervals_end_s if end <= rest)])


@given(st.lists(st.floats(0.01, 0.1), min_size=2, max_size=5), WATTS, st.floats(0.0005, 1.0))
def test_a_counter_without_a_steady_period(intervals_s, watts, call_s):
    found, _ = measure(IrregularCounter(intervals_s), watts=watts, call_s=call_s, seconds=3.0)
    assert abs(found.joules - watts * call_s) <= found.resolution_joules


def test_polling_that_is_interrupted_does_not_narrow_the_bound():
    """A busy host sees an update late; the energy of the board until then does not belong to the work."""

    class Interrupted(FakeTime):
        def sleep(self, seconds, /):
            late = 0.03 if seconds < 0.001 and int(self.now * 1000) % 7 == 0 else 0.0
            super().sleep(seconds + late)

    gpu = FakeGpu(idle_watts=140, period_s=0.05, clock=Interrupted())
    for phase in range(20):
        gpu.clock.sleep(0.0031 * phase)
        found, _ = measure(gpu, watts=20, call_s=0.25)
        assert abs(found.joules - 5) <= found.resolution_joules


def test_a_host_that_always_reads_too_late_gives_no_number():
    class Slow(FakeTime):
        def sleep(self, seconds, /):
            super().sleep(max(seconds, 0.06))

    gpu = FakeGpu(idle_watts=140, period_s=0.05, clock=Slow())
    found, _ = measure(gpu, watts=20, call_s=0.25)
    assert "never read in time" in found.reason


def test_a_window_of_too_few_steps_gives_no_number():
    """The negative control: 40 steps of a second do not fit, and no guess replaces them."""
    gpu = FakeGpu(idle_watts=80, period_s=1.0)
    found, _ = measure(gpu, watts=400, call_s=0.03, seconds=2.0)
    assert isinstance(found, Unavailable)
    assert "every 1000 ms" in found.reason
    assert "40 steps take 40.0 s" in found.reason
    assert gpu.worked_s == 0
    longer, _ = measure(gpu, watts=400, call_s=0.03, seconds=40 / LONGEST)
    assert abs(longer.joules - 12) <= longer.resolution_joules


def test_a_naive_reading_would_be_wrong():
    """Effect of the steps on a single call: the counter shows no energy, or all energy of an earlier step."""
    gpu = FakeGpu(idle_watts=80, period_s=0.1)
    before = gpu.energy_mj()
    gpu.work(0.03, 400)
    assert (gpu.energy_mj() - before) / 1000 != pytest.approx(12, rel=0.3)


def test_a_counter_that_stands_still_or_is_missing():
    gpu = FakeGpu(idle_watts=0, period_s=0.05)
    found = counter_steps(gpu, gpu.clock)
    assert found == Unavailable("the energy counter does not move")
    gpu.unread = Unavailable("NVML: Not Supported")
    assert counter_steps(gpu, gpu.clock) == gpu.unread


def test_a_counter_that_fails_on_the_way():
    gpu = FakeGpu(idle_watts=80, period_s=0.05)
    steps = counter_steps(gpu, gpu.clock)

    def work():
        gpu.work(0.5, 400)
        gpu.unread = Unavailable("NVML: GPU is lost")

    assert work_energy(gpu, work, lambda: None, steps, seconds=2, clock=gpu.clock) == gpu.unread
