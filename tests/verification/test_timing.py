"""Check ``timing-additive``, and the broken clocks and models that it catches."""

from __future__ import annotations

import numpy as np
import pytest

from unfuse.benchmarking import BenchSettings
from unfuse.benchmarking.pairs import Pairs
from unfuse.benchmarking.protocols import DECOUPLED
from unfuse.benchmarking.setup import BenchSetup
from unfuse.measure.clock import _active
from unfuse.measure.timers import HostTimer
from unfuse.staged_model import StagedModel
from unfuse.testing import AsyncDevice
from unfuse.verification.timing import clock_mismatch, timing_additive


class Paced(StagedModel):
    """Each stage takes 10 ms of a clock, give or take 0.1; the real computation takes no time of it."""

    def __init__(self, model, clock):
        super().__init__("paced", model.adapter, model.engine)
        self.clock = clock
        self.rng = np.random.default_rng(0)

    def work(self):
        self.clock.sleep(self.rng.normal(10, 0.1) / 1000)

    def load(self, sample):
        self.work()
        return super().load(sample)

    def preprocess(self, loaded, question=None):
        self.work()
        return super().preprocess(loaded, question)

    def encode(self, source):
        self.work()
        return super().encode(source)

    def prefill(self, *given, **named):
        self.work()
        return super().prefill(*given, **named)

    def decode(self, *given, **named):
        self.work()
        return super().decode(*given, **named)


class SlowEncode(Paced):
    """Leaves a device with 100 ms of work at the end of encode, as kernel launches would."""

    def __init__(self, model, device):
        super().__init__(model, device.clock)
        self._queue = device

    def encode(self, source):
        features = super().encode(source)
        self._queue.launch(100)
        return features


class NeverWaits(AsyncDevice):
    """A clock's device without synchronisation."""

    def synchronize(self):
        return None


def test_clock_that_synchronises_passes(small_model, small_sample, fake_time):
    device = AsyncDevice(fake_time)
    result = timing_additive(SlowEncode(small_model, device), small_sample, device, 2, pairs=7)
    assert "clocks agree" in result.observed, result


def test_clock_that_does_not_synchronise_is_caught(small_model, small_sample, fake_time):
    device = NeverWaits(fake_time)
    result = timing_additive(SlowEncode(small_model, device), small_sample, device, 2, pairs=7)
    assert result.status == "fail"
    assert "clocks disagree on encode" in result.observed


class CopiesHost(AsyncDevice):
    """Its marks are readings of the host's clock, taken when the device has no work left."""

    scale, offset_ms = 1.0, 0.0

    def record(self):
        self.synchronize()
        return self.clock.perf_counter_ns()

    def elapsed_ms(self, start, end):
        return self.scale * (end - start) / 1e6 + self.offset_ms


class CopiesWithOffset(CopiesHost):
    offset_ms = -0.02


class CopiesWithScale(CopiesHost):
    scale = 0.97


@pytest.mark.parametrize("copies", [CopiesHost, CopiesWithOffset, CopiesWithScale])
def test_device_times_that_are_host_times_are_caught(small_model, small_sample, fake_time, copies):
    device = copies(fake_time)
    result = timing_additive(SlowEncode(small_model, device), small_sample, device, 2, pairs=7)
    assert result.status == "fail"
    assert "device time of encode is computed from its host time" in result.observed


class WakesLate(AsyncDevice):
    """Another program sometimes delays the host at the end of a wait."""

    def __init__(self, clock, share):
        super().__init__(clock)
        self.rng, self.share = np.random.default_rng(0), share

    def synchronize(self):
        super().synchronize()
        if self.rng.random() < self.share:
            self.clock.sleep(0.03)


def test_a_host_that_is_woken_late_is_no_failure(small_model, small_sample, fake_time):
    device = WakesLate(fake_time, 0.6)
    records = clocks_of(SlowEncode(small_model, device), small_sample, device)
    assert clock_mismatch(records) is not None
    assert clock_mismatch(records, share=0.0) is None


def clocks_of(model, sample, timer):
    setup = BenchSetup(model=model, protocol=DECOUPLED, settings=BenchSettings(max_new_tokens=2), timer=timer)
    return [record for _ in range(12) for record in Pairs(setup).measure(sample) if not record.warmup]


class Busy(Paced):
    """Shares the machine: each stage takes up to three times as long, in stretches of many runs."""

    def __init__(self, model, clock, seed):
        super().__init__(model, clock)
        self.rng, self.slower = np.random.default_rng(seed), 1.0

    def work(self):
        if self.rng.random() < 0.02:
            self.slower = self.rng.uniform(1, 3)
        self.clock.sleep(0.01 * self.slower * self.rng.lognormal(0, 0.4))


@pytest.mark.parametrize("seed", range(4))
def test_a_busy_machine_is_no_failure(small_model, small_sample, fake_time, seed):
    result = timing_additive(Busy(small_model, fake_time, seed), small_sample, HostTimer(), 2, pairs=12)
    assert result.status in ("pass", "inconclusive"), result
    if result.status == "inconclusive":
        assert result.reason.endswith("noise hides the answer; run again on a machine without other work")


class WorksBetweenStages(Paced):
    """Does part of the work outside of all stages."""

    def prefill(self, *given, **named):
        if _active.get() is None:
            self.clock.sleep(0.05)
        return super().prefill(*given, **named)


def test_work_outside_the_stages_is_caught(small_model, small_sample, fake_time):
    result = timing_additive(WorksBetweenStages(small_model, fake_time), small_sample, HostTimer(), 2, pairs=7)
    assert result.status == "fail"
    assert "remainder +" in result.observed


def test_stages_that_are_all_of_the_work_pass(small_model, small_sample, fake_time):
    result = timing_additive(Paced(small_model, fake_time), small_sample, HostTimer(), 2, pairs=7)
    assert result.status == "pass", result


@pytest.mark.clock
def test_stages_of_the_small_model_add_up(small_model, small_sample):
    assert timing_additive(small_model, small_sample, HostTimer(), 2).status == "pass"
