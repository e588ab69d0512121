"""Checks ``hooks-agree`` and ``steady``, and the broken models and clocks that they catch."""

from __future__ import annotations

import numpy as np
import pytest

from unfuse.measure.timers import HostTimer
from unfuse.staged_model import StagedModel
from unfuse.testing import AsyncDevice
from unfuse.verification.hooks import hooks_agree
from unfuse.verification.steady import steady


@pytest.fixture(scope="module")
def prepared(demo_model, demo_sample):
    return demo_model.preprocess(demo_model.load(demo_sample))


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


def test_sound_hooks_agree(demo_model, prepared, fake_time):
    with Takes(demo_model, fake_time):
        result = hooks_agree(demo_model, prepared, HostTimer(), pairs=8)
    assert result.status == "pass", result


@pytest.mark.clock
def test_sound_hooks_agree_on_the_real_clock(demo_model, prepared):
    result = hooks_agree(demo_model, prepared, HostTimer(), pairs=8)
    assert result.status == "pass", result


def test_hooks_on_an_asynchronous_device_agree(demo_model, prepared, fake_time):
    device = AsyncDevice(fake_time)
    with Takes(demo_model, fake_time, device=device):
        result = hooks_agree(demo_model, prepared, device, pairs=5)
    assert result.status == "pass", result


def test_hooks_that_do_not_synchronise_are_caught(demo_model, prepared, fake_time):
    """The seed's hooks: a host clock around a launch."""
    device = AsyncDevice(fake_time)
    with Takes(demo_model, fake_time, device=device):
        result = hooks_agree(demo_model, prepared, device, pairs=5, hooks=HostTimer())
    assert result.status == "fail", result


class NeverWaits(AsyncDevice):
    """Marks that tell when the host came by, not when the device did."""

    def record(self):
        return self.clock.perf_counter()


def test_a_clock_that_times_launches_everywhere_is_caught(demo_model, prepared, fake_time):
    """Both sides agree, on nothing: the launches that they saw do not fill the synchronised stage."""
    device = NeverWaits(fake_time)
    with Takes(demo_model, fake_time, device=device):
        result = hooks_agree(demo_model, prepared, device, pairs=5)
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


def test_other_work_in_the_fused_call_is_caught(demo_model, prepared, fake_time):
    model = FramesOneByOne("one by one", demo_model.adapter, demo_model.engine)
    with Takes(demo_model, fake_time):
        result = hooks_agree(model, prepared, HostTimer(), pairs=6)
    assert result.status == "fail", result


@pytest.mark.clock
def test_a_model_that_stays_as_it_is_is_steady(demo_model, demo_sample):
    assert steady(demo_model, demo_sample, HostTimer()).status == "pass"


class Leaks(StagedModel):
    """Keeps every scene and looks through them all at each new one: by ``scene_ms`` longer each time.

    It lives in the time of ``clock``: all the rest takes 100 ms, give or take 3, and now and then ten times so much.
    What it really computes, it computes once.
    """

    def __init__(self, model, clock, scene_ms):
        super().__init__("leaks", model.adapter, model.engine)
        self.clock, self.scene_ms = clock, scene_ms
        self.seen = 0
        self.rng = np.random.default_rng(0)
        self.encode_once, self.prefill_once, self.decode_once = map(
            once, (super().encode, super().prefill, super().decode)
        )

    def encode(self, source):
        self.seen += 1
        stalled = 10 if self.rng.random() < 0.05 else 1
        self.clock.sleep((self.rng.normal(100, 3) * stalled + self.scene_ms * self.seen) / 1000)
        return self.encode_once(source)

    def prefill(self, *given, **named):
        return self.prefill_once(*given, **named)

    def decode(self, *given, **named):
        return self.decode_once(*given, **named)


def once(function):
    made = []

    def first(*given, **named):
        if not made:
            made.append(function(*given, **named))
        return made[0]

    return first


@pytest.mark.parametrize(("scene_ms", "status"), [(0.0, "pass"), (0.3, "fail")])
def test_a_model_that_slows_down_is_caught(demo_model, demo_sample, fake_time, scene_ms, status):
    result = steady(Leaks(demo_model, fake_time, scene_ms), demo_sample, HostTimer())
    assert result.status == status, result
    assert result.observed.count("%") >= (3 if status == "fail" else 1)
