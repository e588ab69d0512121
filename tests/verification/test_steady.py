"""Check ``steady``; it detects a model that slows down."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from unfuse.measure.timers import HostTimer
from unfuse.staged_model import StagedModel
from unfuse.verification.steady import steady

steady_module = sys.modules[steady.__module__]


@pytest.mark.clock
def test_a_model_that_stays_as_it_is_is_steady(demo_model, demo_sample):
    assert steady(demo_model, demo_sample, HostTimer()).status in ("pass", "inconclusive")


class Leaks(StagedModel):
    """Keeps every scene and looks through them all at each new one: by ``scene_ms`` longer each time.

    It lives in the time of ``clock``: all the rest takes 100 ms, give or take 3, and now and then ten times so much.
    The real computation runs once and is reused.
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
def test_a_model_that_slows_down_is_caught(small_model, small_sample, fake_time, scene_ms, status):
    result = steady(Leaks(small_model, fake_time, scene_ms), small_sample, HostTimer(), runs=40)
    assert result.status == status, result
    assert result.observed.count("%") >= (3 if status == "fail" else 1)


def test_a_machine_that_slows_down_is_inconclusive(small_model, small_sample, fake_time, monkeypatch):
    model = Leaks(small_model, fake_time, 0.3)
    monkeypatch.setattr(steady_module, "_reference_ms", lambda: 1 + 0.01 * model.seen)
    result = steady(model, small_sample, HostTimer(), runs=40)
    assert result.status == "inconclusive", result
    assert "run again on a machine without other work" in result.reason


def test_noise_is_inconclusive(small_model, small_sample, fake_time):
    model = Leaks(small_model, fake_time, 0.0)
    model.rng = Wild(model.rng)
    result = steady(model, small_sample, HostTimer(), runs=40)
    assert result.status == "inconclusive", result


class Wild:
    """Ten times the deviation."""

    def __init__(self, rng):
        self.random = rng.random
        self.normal = lambda mean, deviation: abs(rng.normal(mean, 10 * deviation))


def test_a_drift_that_starts_again_in_each_series_is_inconclusive(small_model, small_sample, fake_time):
    """Noise of the machine: a model that slows down with use goes on where it was."""

    class Restarts(Leaks):
        def encode(self, source):
            made = super().encode(source)
            self.seen %= 45
            return made

    result = steady(Restarts(small_model, fake_time, 0.3), small_sample, HostTimer(), runs=40)
    assert result.status == "inconclusive", result
