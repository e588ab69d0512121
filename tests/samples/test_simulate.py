"""The simulator: what a camera would give, and the same every time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from unfuse.errors import DatasetError
from unfuse.events import read_events
from unfuse.samples.demo import demo_checkpoint, demo_dataset, demo_sample
from unfuse.samples.simulate import Mover, Scene, simulate

BOX = Mover(shape="box", position=(30, 32), velocity=(400, 0), radius=10, intensity=0.9)
SCENE = Scene(movers=(BOX,), size=(96, 64), duration_us=30_000)


def test_same_seed_same_events():
    a, b = simulate(SCENE), simulate(SCENE)
    other = simulate(replace(SCENE, seed=1))
    assert all(np.array_equal(getattr(a, n), getattr(b, n)) for n in "xytp")
    assert not np.array_equal(a.t, other.t[: len(a.t)])


def test_bright_box_brightens_ahead_and_darkens_behind():
    stream = simulate(SCENE)
    rising, falling = stream.x[stream.p == 1], stream.x[stream.p == 0]
    assert 38 <= np.median(rising) <= 54
    assert 18 <= np.median(falling) <= 34
    assert stream.t.min() >= 0
    assert stream.t.max() <= SCENE.duration_us


def test_dark_box_does_the_opposite():
    stream = simulate(replace(SCENE, movers=(replace(BOX, intensity=0.05),)))
    assert np.median(stream.x[stream.p == 0]) > np.median(stream.x[stream.p == 1])


def test_nothing_moves_outside_the_box():
    stream = simulate(SCENE)
    assert stream.y.min() >= 20
    assert stream.y.max() <= 44


def test_higher_threshold_fewer_events():
    assert len(simulate(replace(SCENE, threshold=0.4))) < len(simulate(SCENE))


def test_demo_recordings():
    dataset = demo_dataset()
    assert [sample.sample_id for sample in dataset.samples] == [f"demo:{i}" for i in range(6)]
    dataset.check_media()
    for sample in dataset.samples:
        stream = read_events(sample.event_data)
        assert 10_000 < len(stream) < 1_000_000
        assert stream.duration_us < 50_001
        assert sample.reference
    with pytest.raises(DatasetError, match="demo:0 to demo:5"):
        demo_sample("demo:9")


def test_demo_checkpoint_is_small():
    assert sum(path.stat().st_size for path in demo_checkpoint().parent.rglob("*")) < 40 * 2**20
