"""Checks ``hooks-agree`` and ``steady``, and the broken models and clocks that they catch."""

from __future__ import annotations

import time

import pytest

from unfuse.measure.timers import HostTimer
from unfuse.staged_model import StagedModel
from unfuse.testing import AsyncDevice
from unfuse.verification.hooks import hooks_agree
from unfuse.verification.steady import steady


@pytest.fixture(scope="module")
def prepared(demo_model, demo_sample):
    return demo_model.preprocess(demo_model.load(demo_sample))


def test_sound_hooks_agree(demo_model, prepared):
    result = hooks_agree(demo_model, prepared, HostTimer(), pairs=8)
    assert result.status == "pass", result


class Queued:
    """Gives an asynchronous device 30 ms of work at every call of the tower, as its kernels would be."""

    def __init__(self, model, device):
        self.handle = model.adapter.vision_modules()["tower"].register_forward_hook(lambda *_: device.launch(30))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.handle.remove()


def test_hooks_on_an_asynchronous_device_agree(demo_model, prepared):
    device = AsyncDevice()
    with Queued(demo_model, device):
        result = hooks_agree(demo_model, prepared, device, pairs=5)
    assert result.status == "pass", result


def test_hooks_that_do_not_synchronise_are_caught(demo_model, prepared):
    """The seed's hooks: a host clock around a launch."""
    device = AsyncDevice()
    with Queued(demo_model, device):
        result = hooks_agree(demo_model, prepared, device, pairs=5, hooks=HostTimer())
    assert result.status == "fail", result


class NeverWaits(AsyncDevice):
    """Marks that tell when the host came by, not when the device did."""

    def record(self):
        return time.perf_counter()


def test_a_clock_that_times_launches_everywhere_is_caught(demo_model, prepared):
    """Both sides agree, on nothing: what they saw does not fill the synchronised stage."""
    device = NeverWaits()
    with Queued(demo_model, device):
        device.launch(0)
        result = hooks_agree(demo_model, prepared, device, pairs=5)
    assert result.status == "fail", result
    assert "they fill" in result.observed


class FramesOneByOne(StagedModel):
    """Its fused call runs the tower once a frame, its ``encode`` once for all."""

    def fused(self, prepared, max_new_tokens=512, sampling=None):
        tower = self.adapter.vision_modules()["tower"]
        for frame in prepared.pixel_values:
            tower(frame.unsqueeze(0))
        return super().fused(prepared, max_new_tokens)


def test_other_work_in_the_fused_call_is_caught(demo_model, prepared):
    model = FramesOneByOne("one by one", demo_model.adapter, demo_model.engine)
    result = hooks_agree(model, prepared, HostTimer(), pairs=6)
    assert result.status == "fail", result


def test_a_model_that_stays_as_it_is_is_steady(demo_model, demo_sample):
    assert steady(demo_model, demo_sample, HostTimer()).status == "pass"


class Leaks(StagedModel):
    """Keeps every scene and looks through them all at each new one."""

    seen = 0

    def encode(self, source):
        self.seen += 1
        time.sleep(0.0006 * self.seen)
        return super().encode(source)


def test_a_model_that_slows_down_is_caught(demo_model, demo_sample):
    result = steady(Leaks("leaks", demo_model.adapter, demo_model.engine), demo_sample, HostTimer())
    assert result.status == "fail", result
    assert result.observed.count("%") >= 3
