"""Joules from a counter that moves in steps, against a device whose power is known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unfuse.measure.energy import LEAST_STEPS, LONGEST, counter_steps, work_energy
from unfuse.measure.nvml import Unread
from unfuse.testing import FakeGpu


def measure(gpu, *, watts, call_s, seconds=2.0):
    steps = counter_steps(gpu, gpu.clock)
    assert not isinstance(steps, Unread), steps
    return work_energy(
        gpu, lambda: gpu.work(call_s, watts), lambda: None, steps, seconds=seconds, clock=gpu.clock
    ), steps


@pytest.mark.parametrize("period_s", [0.02, 0.05, 0.1])
@pytest.mark.parametrize("call_s", [0.0007, 0.03, 0.2, 9.0])
def test_known_power_is_found_within_the_stated_resolution(period_s, call_s):
    gpu = FakeGpu(idle_watts=80, period_s=period_s)
    found, steps = measure(gpu, watts=400, call_s=call_s)
    assert abs(found.joules - 400 * call_s) <= found.resolution_joules
    assert found.resolution_joules <= 400 * call_s * 0.03, "one step in forty, and the polling"
    assert found.seconds >= max(2.0, LEAST_STEPS * period_s)
    assert found.calls == pytest.approx(found.seconds / call_s, abs=1.5)
    assert steps.period_s == pytest.approx(period_s, abs=0.001)
    assert steps.step_mj == pytest.approx(1000 * 80 * period_s, rel=0.05)
    assert steps.idle_watts == pytest.approx(80, rel=0.05)


@given(st.floats(20, 700), st.floats(30, 150), st.floats(0.01, 0.15), st.floats(0.0005, 3.0), st.floats(0.0, 0.2))
def test_any_power_period_and_phase(watts, idle_watts, period_s, call_s, phase_s):
    gpu = FakeGpu(idle_watts=idle_watts, period_s=period_s)
    gpu.clock.sleep(phase_s)
    found, _ = measure(gpu, watts=watts, call_s=call_s)
    assert abs(found.joules - watts * call_s) <= found.resolution_joules


def test_a_window_of_too_few_steps_gives_no_number():
    """The negative control: 40 steps of a second do not fit, and nothing is guessed in their place."""
    gpu = FakeGpu(idle_watts=80, period_s=1.0)
    found, _ = measure(gpu, watts=400, call_s=0.03, seconds=2.0)
    assert isinstance(found, Unread)
    assert "every 1000 ms" in found.reason
    assert "40 steps take 40.0 s" in found.reason
    assert gpu.worked_s == 0
    longer, _ = measure(gpu, watts=400, call_s=0.03, seconds=40 / LONGEST)
    assert abs(longer.joules - 12) <= longer.resolution_joules


def test_a_naive_reading_would_be_wrong():
    """What the steps do to a single call: the counter says nothing at all, or all of an earlier step."""
    gpu = FakeGpu(idle_watts=80, period_s=0.1)
    before = gpu.energy_mj()
    gpu.work(0.03, 400)
    assert (gpu.energy_mj() - before) / 1000 != pytest.approx(12, rel=0.3)


def test_a_counter_that_stands_still_or_is_not_there():
    gpu = FakeGpu(idle_watts=0, period_s=0.05)
    found = counter_steps(gpu, gpu.clock)
    assert found == Unread("the energy counter does not move")
    gpu.unread = Unread("NVML: Not Supported")
    assert counter_steps(gpu, gpu.clock) == gpu.unread


def test_a_counter_that_fails_on_the_way():
    gpu = FakeGpu(idle_watts=80, period_s=0.05)
    steps = counter_steps(gpu, gpu.clock)

    def work():
        gpu.work(0.5, 400)
        gpu.unread = Unread("NVML: GPU is lost")

    assert work_energy(gpu, work, lambda: None, steps, seconds=2, clock=gpu.clock) == gpu.unread
