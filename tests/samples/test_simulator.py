"""The simulator gives the events of a camera, and equal events every time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from unfuse.errors import EventStreamError, InputError
from unfuse.events import read_events
from unfuse.samples.simulator import SHAPES, Flicker, Mover, SimulatedCamera, SimulatedScene, driving_scene, simulate
from unfuse.samples.simulator.pixels import _crossings, _outside_refractory, _Step
from unfuse.samples.simulator.render import SceneRenderer, draw_texture

BOX = Mover(shape="box", position=(30, 32), velocity=(400, 0), radius=10, intensity=0.9)
SCENE = SimulatedScene(movers=(BOX,), size=(96, 64), duration_us=30_000)


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
    assert len(simulate(replace(SCENE, camera=SimulatedCamera(threshold=0.4)))) < len(simulate(SCENE))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_inside_its_square(shape):
    mover = replace(BOX, shape=shape, position=(48, 32), velocity=(120, 0), radius=16)
    stream = simulate(replace(SCENE, movers=(mover,), texture=0.0))
    assert len(stream) > 50
    assert stream.x.min() >= 48 - 18
    assert stream.x.max() <= 48 + 120 * 0.03 + 18
    assert stream.y.min() >= 32 - 18
    assert stream.y.max() <= 32 + 18


def test_shapes_are_distinct():
    pictures = set()
    for shape in SHAPES:
        scene = SimulatedScene(movers=(replace(BOX, shape=shape),), size=(96, 64), texture=0.0)
        image = SceneRenderer(scene, draw_texture(np.random.default_rng(0), (12, 60))).intensity(0.0)
        pictures.add(int((image > 0.6).sum()))
    assert len(pictures) == len(SHAPES)
    with pytest.raises(InputError, match="shape: found 'cube', expected disc"):
        replace(BOX, shape="cube")


@examples(20)
@given(st.integers(0, 2**32 - 1), st.floats(-200, 200), st.floats(-200, 200), st.floats(-2, 2))
def test_the_fast_background_is_the_sum_of_its_waves(seed, pan_x, pan_y, zoom):
    """The matrix product against the waves themselves, pixel by pixel."""
    scene = SimulatedScene(pan=(pan_x, pan_y), zoom=zoom, size=(48, 32))
    texture, seconds = draw_texture(np.random.default_rng(seed), (12, 60)), 0.04
    scale = 1 + zoom * seconds
    y, x = np.mgrid[:32, :48].astype(float)
    x, y = (x - 24) / scale + 24 - pan_x * seconds, (y - 16) / scale + 16 - pan_y * seconds
    slow = 0.35 + sum(a * np.sin(kx * x + ky * y + phase) for a, kx, ky, phase in texture)
    np.testing.assert_allclose(SceneRenderer(scene, texture).intensity(seconds), slow.clip(0, 1), atol=1e-12)


def test_a_pixel_fires_as_often_as_its_contrast_crosses_the_threshold():
    """One step from dark to bright: floor(log ratio / threshold) events a pixel, spread over the step."""
    flat = SimulatedCamera(threshold=0.25, threshold_spread=0.0)
    scene = SimulatedScene(size=(4, 3), texture=0.0, camera=flat)
    before, now = np.full((3, 4), -2.0), np.full((3, 4), -1.0 + 1e-9)
    memory, level = before.copy(), np.full((3, 4), 0.25)
    t, y, x, p = _crossings(_Step(before, now, 5_000, 1_000), memory, level, level)
    assert len(t) == 4 * 12
    assert set(p) == {1}
    assert sorted(t[(x == 0) & (y == 0)]) == [5249, 5499, 5749, 5999]
    np.testing.assert_allclose(memory, -1.0)
    with pytest.raises(EventStreamError, match="no events"):
        simulate(scene)


def slow_refractory(events, refractory_us):
    last, retained = {}, []
    for t, y, x, p in events.T.tolist():
        if t - last.get((y, x), -(1 << 62)) >= refractory_us:
            last[y, x] = t
            retained.append((t, y, x, p))
    return np.array(retained, np.int64).reshape(-1, 4).T


@examples(60)
@given(st.integers(0, 400), st.integers(1, 500), st.integers(0, 2**32 - 1))
def test_refractory_time_is_the_loop_over_events(count, refractory_us, seed):
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(0, 3_000, count))
    events = np.stack([t, rng.integers(0, 3, count), rng.integers(0, 4, count), rng.integers(0, 2, count)])
    np.testing.assert_array_equal(_outside_refractory(events, refractory_us, 4), slow_refractory(events, refractory_us))


def test_noise_leak_and_flicker():
    still = SimulatedScene(size=(64, 48), texture=0.0, duration_us=100_000, seed=3)
    noisy = simulate(replace(still, camera=SimulatedCamera(shot_noise_hz=20.0)))
    expected = 20.0 * 0.1 * 64 * 48
    assert 0.8 * expected < len(noisy) < 1.2 * expected
    assert 0.45 < noisy.p.mean() < 0.55
    leaking = simulate(replace(still, camera=SimulatedCamera(leak_hz=20.0)))
    assert 0.7 * expected < len(leaking) < 1.3 * expected
    assert leaking.p.min() == 1, "leaks rise"
    lamp = simulate(replace(still, flickers=(Flicker(position=(32, 24), radius=8),)))
    assert np.hypot(lamp.x - 32.0, lamp.y - 24.0).max() < 10
    phase = np.histogram(lamp.t[lamp.p == 1] % 10_000, bins=4, range=(0, 10_000))[0]
    assert phase[0] + phase[3] > 5 * (phase[1] + phase[2]), "brightens in step with the mains"


def test_driving_scenes_are_like_real_recordings(recordings_dir):
    """Event rate, share of rising events and of pixels that fire, within a factor of those of five recordings."""

    def numbers(stream):
        pixels = len(np.unique(stream.y.astype(np.int64) * 640 + stream.x))
        return len(stream) / max(stream.duration_us, 1), stream.p.mean(), pixels / (640 * 480)

    real = np.array([numbers(read_events(path)) for path in sorted(recordings_dir.glob("*.npy"))])
    made = np.array([numbers(simulate(driving_scene(seed))) for seed in range(6)])
    assert len(real) == 5
    for column in (0, 2):
        assert made[:, column].min() > real[:, column].min() / 2
        assert made[:, column].max() < real[:, column].max() * 2
        assert real[:, column].min() / 1.5 < np.median(made[:, column]) < real[:, column].max() * 1.5
    assert real[:, 1].min() - 0.05 < made[:, 1].min()
    assert made[:, 1].max() < real[:, 1].max() + 0.05


def test_driving_scenes_differ_by_seed_only():
    assert driving_scene(3) == driving_scene(3)
    assert driving_scene(3) != driving_scene(4)
