"""Check ``hooks-agree``, and the broken models and clocks that it catches."""

from __future__ import annotations

import numpy as np
import pytest

from unfuse.measure.timers import HostTimer
from unfuse.staged_model import StagedModel
from unfuse.testing import AsyncDevice
from unfuse.verification.hooks import hooks_agree


@pytest.fixture(scope="module")
def prepared(small_model, small_sample):
    return small_model.preprocess(small_model.load(small_sample))


class Takes:
    """Lets each call of tower and projector take known times: of the host's clock, and of a device's queue."""

    def __init__(self, model, clock, *, host_ms=1, device=None, device_ms=100):
        def work(*_):
            clock.sleep(host_ms / 1000)
            if device is not None:
                device.launch(device_ms)

        modules = model.adapter.vision_modules().values()
        self.handles = [module.register_forward_hook(work) for module in modules]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


def test_sound_hooks_agree(small_model, prepared, fake_time):
    with Takes(small_model, fake_time):
        result = hooks_agree(small_model, prepared, HostTimer(), pairs=8)
    assert result.status == "pass", result


@pytest.mark.clock
def test_sound_hooks_agree_on_the_real_clock(small_model, prepared):
    result = hooks_agree(small_model, prepared, HostTimer(), pairs=8)
    assert result.status in ("pass", "inconclusive"), result


def test_noise_is_inconclusive(small_model, prepared, fake_time):
    rng = np.random.default_rng(0)

    class Uneven:
        def sleep(self, seconds):
            fake_time.sleep(seconds * rng.uniform(0.2, 5))

    with Takes(small_model, Uneven()):
        result = hooks_agree(small_model, prepared, HostTimer(), pairs=4)
    assert result.status == "inconclusive", result
    assert "run again on a machine without other work" in result.reason


def test_hooks_on_an_asynchronous_device_agree(small_model, prepared, fake_time):
    device = AsyncDevice(fake_time)
    with Takes(small_model, fake_time, device=device):
        result = hooks_agree(small_model, prepared, device, pairs=5)
    assert result.status == "pass", result


def test_hooks_that_do_not_synchronise_are_caught(small_model, prepared, fake_time):
    """The seed's hooks: a host clock around a launch."""
    device = AsyncDevice(fake_time)
    with Takes(small_model, fake_time, device=device):
        result = hooks_agree(small_model, prepared, device, pairs=5, hooks=HostTimer())
    assert result.status == "fail", result


class NeverWaits(AsyncDevice):
    """Marks that tell when the host came by, not when the device did."""

    def record(self):
        return self.clock.perf_counter()


def test_a_clock_that_times_launches_everywhere_is_caught(small_model, prepared, fake_time):
    """Both sides agree, on nothing: the launches that they saw do not fill the synchronised stage."""
    device = NeverWaits(fake_time)
    with Takes(small_model, fake_time, device=device):
        result = hooks_agree(small_model, prepared, device, pairs=5)
    assert result.status == "fail", result
    assert "sub-spans 1.000 [1.000, 1.000]" in result.observed
    assert "they fill 1%" in result.observed


class FramesOneByOne(StagedModel):
    """Its fused call runs the tower once a frame, its ``encode`` once for all."""

    def fused(self, prepared, max_new_tokens=512, sampling=None):
        tower = self.adapter.vision_modules()["tower"]
        for frame in prepared.pixel_values:
            tower(frame.unsqueeze(0))
        return super().fused(prepared, max_new_tokens)


def test_other_work_in_the_fused_call_is_caught(small_model, prepared, fake_time):
    model = FramesOneByOne("one by one", small_model.adapter, small_model.engine)
    with Takes(small_model, fake_time):
        result = hooks_agree(model, prepared, HostTimer(), pairs=6)
    assert result.status == "fail", result
