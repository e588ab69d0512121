"""Variants of a scene: what is changed survives a central crop and a resize."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.examples import examples
from unfuse.samples.variants import equal_frames, inverted, with_exchange, with_random_polarity, with_square
from unfuse.testing import synthetic_stream

side = st.integers(1, 300)


def shown(frame):
    """Return a frame as a tower of 28 pixels sees it: the shorter side resized, and the centre cropped."""
    height, width = frame.shape[:2]
    scale = 28 / min(height, width)
    size = max(28, round(width * scale)), max(28, round(height * scale))
    resized = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))
    top, left = (resized.shape[0] - 28) // 2, (resized.shape[1] - 28) // 2
    return resized[top : top + 28, left : left + 28]


@given(height=side, width=side, seed=st.integers(0, 100), grey=st.integers(0, 255))
@examples(60)
def test_a_changed_square_is_seen_after_resize_and_crop(height, width, seed, grey):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for frame in (noise, np.full_like(noise, grey)):
        (changed,) = with_square([frame], 0, seed)
        assert changed.shape == frame.shape
        assert (shown(changed) != shown(frame)).any()


@given(height=side, width=side, seed=st.integers(0, 100))
@examples(60)
def test_exchanged_squares_are_seen_and_keep_the_histogram(height, width, seed):
    frame = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if (made := with_exchange([frame], 0, seed)) is not None:
        (changed,) = made
        np.testing.assert_array_equal(np.sort(changed, axis=None), np.sort(frame, axis=None))
        assert (shown(changed) != shown(frame)).any()


def test_a_frame_without_two_different_squares_is_not_exchanged():
    assert with_exchange([np.full((60, 80, 3), 7, np.uint8)], 0) is None


def test_equal_frames_have_equal_number_sizes_and_pixels():
    frames = [np.zeros((4, 6, 3), np.uint8), np.ones((4, 6, 3), np.uint8)]
    assert equal_frames(frames, [frame.copy() for frame in frames])
    assert not equal_frames(frames, frames[:1])
    assert not equal_frames(frames, inverted(frames))
    assert not equal_frames(frames[:1], [np.zeros((6, 4, 3), np.uint8)])


@given(st.integers(0, 50), st.integers(1, 30))
@examples(30)
def test_random_polarities_always_change_the_last_event(seed, number):
    stream = synthetic_stream(number)
    changed = with_random_polarity(stream, seed)
    assert changed.p[-1] != stream.p[-1]
    assert set(np.unique(changed.p)) <= {0, 1}
