"""Frames against the per-event loop of the published algorithm, and against its recorded hashes."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unfuse.errors import EventStreamError
from unfuse.events import EventStream, event_frame, event_frames, read_events, split_equal_count
from unfuse.testing import synthetic_stream


def by_loop(stream):
    """Each event paints its pixel, in order."""
    frame = np.full((max(stream.y.tolist()) + 1, max(stream.x.tolist()) + 1, 3), 255, dtype=np.uint8)
    for x, y, p in zip(stream.x.tolist(), stream.y.tolist(), stream.p.tolist(), strict=True):
        frame[y, x] = (0, 0, 255) if p == 0 else (255, 0, 0)
    return frame


events = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 7), st.integers(0, 1)), min_size=1, max_size=300)


@given(events)
def test_frame_equals_the_loop(rows):
    x, y, p = (np.array(column) for column in zip(*rows, strict=True))
    stream = EventStream.from_arrays(x, y, np.arange(len(x)), p)
    assert np.array_equal(event_frame(stream), by_loop(stream))


def test_last_event_wins_among_a_million():
    """One pixel fires at every other event, far beyond any block size numpy might reorder."""
    rng = np.random.default_rng(0)
    n = 1_000_000
    x = np.where(rng.random(n) < 0.5, 3, rng.integers(0, 640, n))
    y = np.where(x == 3, 2, rng.integers(0, 480, n))
    stream = EventStream.from_arrays(x, y, np.arange(n), rng.integers(0, 2, n))
    assert np.array_equal(event_frame(stream), by_loop(stream))


def test_colours_and_size():
    stream = EventStream.from_arrays(np.array([0, 3, 3]), np.array([0, 1, 1]), np.arange(3), np.array([0, 0, 1]))
    frame = event_frame(stream)
    assert frame.shape == (2, 4, 3)
    assert frame[0, 0].tolist() == [0, 0, 255]
    assert frame[1, 3].tolist() == [255, 0, 0]
    assert frame[0, 1].tolist() == [255, 255, 255]
    assert not frame.flags.writeable


def test_frames_are_those_of_equal_counts():
    stream = synthetic_stream(103)
    assert all(
        np.array_equal(a, by_loop(run)) for a, run in zip(event_frames(stream), split_equal_count(stream), strict=True)
    )


@given(st.integers(1, 400), st.integers(1, 12))
def test_split_keeps_every_event_once(count, bins):
    stream = synthetic_stream(count)
    if count < bins:
        with pytest.raises(EventStreamError, match="one per frame"):
            split_equal_count(stream, bins)
        return
    runs = split_equal_count(stream, bins)
    assert [len(run) for run in runs[:-1]] == [count // bins] * (bins - 1)
    assert np.array_equal(np.concatenate([run.t for run in runs]), stream.t)


def test_published_hashes(golden_dir, recordings_dir):
    for case in json.loads((golden_dir / "golden.json").read_text())["cases"][::3]:
        frames = event_frames(read_events(recordings_dir / case["events"]), case["frames"])
        assert [list(frame.shape) for frame in frames] == case["frame_shapes"]
        assert [hashlib.sha256(frame.tobytes()).hexdigest() for frame in frames] == case["frame_sha256"]
