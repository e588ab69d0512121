"""Check ``timing-additive``, and the broken clocks and models that it catches."""

from __future__ import annotations

import numpy as np
import pytest

from unfuse.measure.clock import _active
from unfuse.measure.timers import HostTimer
from unfuse.staged_model import StagedModel
from unfuse.testing import AsyncDevice
from unfuse.verification.timing import timing_additive


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


def test_clock_that_synchronises_passes(demo_model, demo_sample, fake_time):
    device = AsyncDevice(fake_time)
    result = timing_additive(SlowEncode(demo_model, device), demo_sample, device, 2, pairs=7)
    assert "clocks agree" in result.observed, result


def test_clock_that_does_not_synchronise_is_caught(demo_model, demo_sample, fake_time):
    device = NeverWaits(fake_time)
    result = timing_additive(SlowEncode(demo_model, device), demo_sample, device, 2, pairs=7)
    assert result.status == "fail"
    assert "clocks disagree on encode" in result.observed


class WorksBetweenStages(Paced):
    """Does part of the work outside of all stages."""

    def prefill(self, *given, **named):
        if _active.get() is None:
            self.clock.sleep(0.05)
        return super().prefill(*given, **named)


def test_work_outside_the_stages_is_caught(demo_model, demo_sample, fake_time):
    result = timing_additive(WorksBetweenStages(demo_model, fake_time), demo_sample, HostTimer(), 2, pairs=7)
    assert result.status == "fail"
    assert "remainder +" in result.observed


def test_stages_that_are_all_of_the_work_pass(demo_model, demo_sample, fake_time):
    result = timing_additive(Paced(demo_model, fake_time), demo_sample, HostTimer(), 2, pairs=7)
    assert result.status == "pass", result


@pytest.mark.clock
def test_stages_of_the_demo_model_add_up(demo_model, demo_sample):
    assert timing_additive(demo_model, demo_sample, HostTimer(), 2).status == "pass"
