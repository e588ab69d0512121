"""The fast pixels against the image processor that they replace."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image
from transformers import CLIPImageProcessorPil

from tests.examples import examples
from unfuse.adapters import pixels as module
from unfuse.adapters.pixels import ClipPixels
from unfuse.adapters.resample import bicubic_axis
from unfuse.errors import MediaError
from unfuse.events import event_frames, read_events


def processor(edge=48, crop=None, **settings):
    height, width = crop or (edge, edge)
    return CLIPImageProcessorPil(size={"shortest_edge": edge}, crop_size={"height": height, "width": width}, **settings)


def reference(chosen, frames, **options):
    return chosen(list(frames), return_tensors="np", **options)["pixel_values"]


@examples(150)
@given(st.integers(5, 160), st.integers(1, 160), st.integers(16, 64), st.integers(0, 9), st.integers(0, 2**31))
def test_every_size_gives_the_same_bits(height, width, edge, margin, seed):
    rng = np.random.default_rng(seed)
    # Extremes overshoot, so that sums are clipped.
    frame = rng.choice(np.array([0, 3, 250, 255], np.uint8), (height, width, 3))
    chosen = processor(edge, (max(edge - margin, 16), max(edge - 2 * margin, 16)))
    fast = ClipPixels(chosen)
    assert fast.notes == ()
    assert_array_equal(fast([frame]), reference(chosen, [frame]))


@pytest.mark.parametrize(
    "shape", [(480, 640), (478, 639), (640, 480), (720, 1280), (1080, 1440), (260, 346), (336, 336)]
)
def test_clip_336_on_the_sizes_of_cameras(shape):
    chosen = processor(336)
    frames = [np.random.default_rng(i).integers(0, 256, (*shape, 3), dtype=np.uint8) for i in range(2)]
    assert_array_equal(ClipPixels(chosen)(frames), reference(chosen, frames))


def test_real_event_frames(recordings_dir):
    chosen = processor(336)
    fast = ClipPixels(chosen)
    for path in sorted(recordings_dir.glob("*.npy")):
        frames = event_frames(read_events(path))
        assert_array_equal(fast(frames), reference(chosen, frames))


@pytest.mark.parametrize(
    "settings",
    [
        {"resample": Image.Resampling.BILINEAR},
        {"do_resize": False},
        {"do_normalize": False},
        {"crop": (60, 60)},
        {"edge": 14},
    ],
)
def test_other_settings_are_left_to_the_processor_and_noted(settings):
    chosen = processor(**settings)
    fast = ClipPixels(chosen)
    assert fast.notes == ("pixels by CLIPImageProcessorPil: its settings have no faster way",)
    frames = [np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)]
    assert_array_equal(fast(frames), reference(chosen, frames))


def test_a_processor_that_turns_out_to_differ_is_left_alone(monkeypatch):
    def wrong(frame, across, down, values, out):
        out[:] = 0

    monkeypatch.setattr(module, "resize_crop", wrong)
    assert ClipPixels(processor()).notes


def test_a_picture_that_is_not_rgb_is_left_to_the_processor():
    chosen = processor()
    channels_first = np.random.default_rng(0).integers(0, 256, (3, 50, 60), dtype=np.uint8)
    assert_array_equal(ClipPixels(chosen)([channels_first]), reference(chosen, [channels_first]))


@given(st.integers(1, 500), st.integers(1, 200))
def test_an_axis_looks_inside_and_its_weights_are_one(length, resized):
    axis = bicubic_axis(length, resized, 0, resized)
    assert 0 <= axis.start < axis.stop <= length
    used = (axis.weights != 0) * np.arange(axis.weights.shape[1])
    assert (axis.start + axis.first + used.max(axis=1) < length).all()
    assert np.abs(axis.weights.sum(axis=1) - (1 << 22)).max() <= axis.weights.shape[1]
    assert all(a <= b for a, b in pairwise(axis.first.tolist()))


@pytest.mark.parametrize("shape", [(2, 300), (300, 2), (1, 50), (50, 1), (3, 40), (40, 3), (4, 90), (1, 1), (3, 3)])
def test_strips_are_cropped_before_they_are_enlarged(shape):
    """Also three rows, which are no three channels."""
    chosen = processor(48)
    frame = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert_array_equal(ClipPixels(chosen)([frame]), reference(chosen, [frame], input_data_format="channels_last"))


@pytest.mark.parametrize("shape", [(2, 20_000), (20_000, 2), (1, 500_000)])
def test_a_strip_takes_no_more_memory(shape, monkeypatch):
    fast = ClipPixels(processor(112))
    monkeypatch.setattr(fast, "_by_processor", lambda _: pytest.fail("it enlarges the whole strip"))
    assert fast([np.full((*shape, 3), 255, np.uint8)]).shape == (1, 3, 112, 112)


def test_a_strip_for_another_processor_is_refused():
    slow = ClipPixels(processor(48, resample=Image.Resampling.BILINEAR))
    with pytest.raises(MediaError, match="20000 x 2 pixels, expected no side over 200 times"):
        slow([np.zeros((2, 20_000, 3), np.uint8)])
    assert slow([np.zeros((2, 400, 3), np.uint8)]).shape == (1, 3, 48, 48)
