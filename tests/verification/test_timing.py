"""Check ``timing-additive``, and the broken clocks and models that it catches."""

from __future__ import annotations

import time

from unfuse.measure.clock import _active
from unfuse.measure.timers import HostTimer
from unfuse.staged_model import StagedModel
from unfuse.testing import AsyncDevice
from unfuse.verification.timing import timing_additive


class SlowEncode(StagedModel):
    """Leaves a device with 100 ms of work at the end of encode, as kernel launches would."""

    def __init__(self, model, device):
        super().__init__("slow", model.adapter, model.engine)
        self._queue = device

    def encode(self, source):
        features = super().encode(source)
        self._queue.launch(100)
        return features


class NeverWaits(AsyncDevice):
    """A clock's device whose synchronisation was forgotten."""

    def synchronize(self):
        return None


def test_clock_that_synchronises_passes(demo_model, demo_sample):
    device = AsyncDevice()
    result = timing_additive(SlowEncode(demo_model, device), demo_sample, device, 2, pairs=7)
    assert "clocks disagree" not in result.observed, result


def test_clock_that_does_not_synchronise_is_caught(demo_model, demo_sample):
    device = NeverWaits()
    result = timing_additive(SlowEncode(demo_model, device), demo_sample, device, 2, pairs=7)
    assert result.status == "fail"
    assert "clocks disagree on encode" in result.observed


class WorksBetweenStages(StagedModel):
    """Does part of the work where no stage is running."""

    def __init__(self, model):
        super().__init__("between", model.adapter, model.engine)

    @property
    def prefill(self):
        if _active.get() is None:
            time.sleep(0.05)
        return super().prefill


def test_work_outside_the_stages_is_caught(demo_model, demo_sample):
    result = timing_additive(WorksBetweenStages(demo_model), demo_sample, HostTimer(), 2, pairs=7)
    assert result.status == "fail"
    assert "remainder +" in result.observed
