"""The batched simulator against the numpy one, and its pixels against the image processor's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from training.device_simulator import batch_with, colours, draw_batch, frames_of, simulate_batch
from training.pixels import augment, resize_and_crop
from unfuse.events import event_frames
from unfuse.models.eventgpt import EventGPTProcessor
from unfuse.samples.demo import demo_checkpoint
from unfuse.samples.demo.scenes import demo_scene
from unfuse.samples.simulator import (
    Flicker,
    Mover,
    SimulatedCamera,
    SimulatedScene,
    draw_randomness,
    simulate,
    simulate_events,
)

CPU = torch.device("cpu")


def small(seed):
    """A scene with everything in it: growth, flicker, pan, zoom, leaks, noise, rest."""
    rng = np.random.default_rng(seed)
    movers = tuple(
        Mover(
            shape=shape,
            position=tuple(rng.uniform(10, 60, 2)),
            velocity=tuple(rng.uniform(-900, 900, 2)),
            radius=rng.uniform(6, 14),
            intensity=rng.uniform(),
            growth=rng.uniform(-8, 8),
        )
        for shape in rng.permutation(["disc", "box", "triangle", "bar", "ring"])[: rng.integers(0, 4)]
    )
    return SimulatedScene(
        movers=movers,
        flickers=(Flicker(position=(20.0, 20.0), radius=7.0),) if seed % 2 else (),
        pan=(rng.uniform(-500, 500), rng.uniform(-500, 500)) if seed % 3 else (0.0, 0.0),
        zoom=rng.uniform(0, 4) if seed % 3 == 2 else 0.0,
        contours=300.0 if seed % 4 == 3 else 0.0,
        thicket=(50.0, 30.0, 20.0) if seed % 8 == 3 else None,
        size=(96, 64),
        duration_us=20_500,
        camera=SimulatedCamera(off_factor=1.2, shot_noise_hz=5.0, leak_hz=1.0, refractory_us=400),
        seed=seed,
    )


def compare(scenes):
    randomness = [draw_randomness(scene) for scene in scenes]
    batch = batch_with(scenes, randomness, CPU, torch.float64)
    index, t, p = simulate_batch(batch)
    frames = colours(frames_of(index, p, batch.shape))
    _, height, width = batch.shape
    for i, (scene, random) in enumerate(zip(scenes, randomness, strict=True)):
        stream = simulate_events(scene, random)
        mine = index // (height * width) == i
        pixel = index[mine].numpy() % (height * width)
        np.testing.assert_array_equal(pixel, stream.y.astype(int) * width + stream.x)
        np.testing.assert_array_equal(t[mine], stream.t)
        np.testing.assert_array_equal(p[mine], stream.p)
        for k, frame in enumerate(event_frames(stream)):
            whole = np.full((height, width, 3), 255, np.uint8)
            whole[: frame.shape[0], : frame.shape[1]] = frame
            np.testing.assert_array_equal(frames[i, k].permute(1, 2, 0), whole)


def test_small_scenes_give_the_same_events_and_frames():
    compare([small(seed) for seed in range(9)])


def test_demo_scenes_give_the_same_events_and_frames():
    compare([demo_scene(seed)[0] for seed in (0, 2, 4, 7)])


def test_own_randomness_has_the_same_statistics():
    scenes = [demo_scene(seed)[0] for seed in (3, 4)]
    index, _, p = simulate_batch(draw_batch(scenes, CPU, torch.float32))
    counts = torch.bincount(index // (640 * 480), minlength=2).numpy()
    streams = [simulate(scene) for scene in scenes]
    np.testing.assert_allclose(counts, [len(stream) for stream in streams], rtol=0.15)
    assert abs(float(p.float().mean()) - np.concatenate([stream.p for stream in streams]).mean()) < 0.05
    again = simulate_batch(draw_batch(scenes, CPU, torch.float32))[0]
    assert torch.equal(index, again)
    with pytest.raises(NotImplementedError, match="noise"):
        draw_batch(
            [replace(scene, camera=replace(scene.camera, dark_noise=4.0)) for scene in scenes], CPU, torch.float32
        )


def test_pixels_are_those_of_the_image_processor():
    processor = EventGPTProcessor.from_pretrained(demo_checkpoint()).image_processor
    batch = batch_with([demo_scene(0)[0]], [draw_randomness(demo_scene(0)[0])], CPU, torch.float64)
    index, _, p = simulate_batch(batch)
    frames = colours(frames_of(index, p, batch.shape))[0]
    wanted = processor(
        [frame.permute(1, 2, 0).numpy() for frame in frames], do_rescale=False, do_normalize=False, return_tensors="pt"
    ).pixel_values
    difference = (resize_and_crop(frames).int() - wanted.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.01


def test_variation():
    pixels = torch.randint(0, 255, (3, 5, 3, 4, 6), dtype=torch.uint8)
    no, yes = torch.zeros(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)
    assert torch.equal(augment(pixels, no, no), pixels)
    assert torch.equal(augment(pixels, yes, no), pixels.flip(-1))
    assert torch.equal(augment(pixels, no, yes), pixels[:, :, [2, 1, 0]])
