"""Each picture of events against a loop over them, as its paper defines it."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from unfuse.errors import EventStreamError
from unfuse.events import (
    EventStream,
    event_frame,
    event_frames,
    event_histogram,
    read_events,
    slice_by_event_count,
    slice_by_time,
    split_equal_time,
    time_surface,
    voxel_grid,
)
from unfuse.events.on_device import event_frames_on
from unfuse.testing import synthetic_stream

WIDTH, HEIGHT = 10, 8
rows = st.lists(
    st.tuples(st.integers(0, WIDTH - 1), st.integers(0, HEIGHT - 1), st.integers(0, 60_000), st.integers(0, 1)),
    min_size=1,
    max_size=200,
)


def stream_of(found):
    x, y, t, p = (np.array(column) for column in zip(*sorted(found, key=lambda row: row[2]), strict=True))
    return EventStream.from_arrays(x, y, t, p, sensor_size=(WIDTH, HEIGHT))


def each(stream):
    return zip(stream.x.tolist(), stream.y.tolist(), stream.t.tolist(), stream.p.tolist(), strict=True)


@given(rows)
def test_histogram_equals_the_loop(found):
    stream = stream_of(found)
    expected = np.zeros((2, HEIGHT, WIDTH), int)
    for x, y, _, p in each(stream):
        expected[p, y, x] += 1
    assert_array_equal(event_histogram(stream), expected)


@given(rows, st.integers(1, 9))
def test_voxel_grid_equals_the_loop(found, bins):
    """Zhu et al. 2019: V(b) = sum of p max(0, 1 - |b - t*|), t* = (B - 1) (t - t0) / (t1 - t0)."""
    stream = stream_of(found)
    first, last = int(stream.t[0]), int(stream.t[-1])
    expected = np.zeros((bins, HEIGHT, WIDTH))
    for x, y, t, p in each(stream):
        position = (bins - 1) * (t - first) / max(last - first, 1)
        for b in range(bins):
            expected[b, y, x] += (2 * p - 1) * max(0.0, 1 - abs(b - position))
    assert_allclose(voxel_grid(stream, bins), expected, atol=1e-5)


@given(rows)
def test_normalised_voxels(found):
    grid = voxel_grid(stream_of(found), 4)
    normal = voxel_grid(stream_of(found), 4, normalize=True)
    values = normal[grid != 0].astype(float)
    assert not normal[grid == 0].any()
    if len(set(values.tolist())) > 1:
        assert abs(values.mean()) < 1e-5
        assert abs(values.std(ddof=1) - 1) < 1e-5


@given(rows, st.floats(1_000, 100_000), st.integers(0, 10_000))
def test_time_surface_equals_the_loop(found, tau, delay):
    stream = stream_of(found)
    at = int(stream.t[-1]) + delay
    expected = np.zeros((2, HEIGHT, WIDTH))
    for x, y, t, p in each(stream):
        expected[p, y, x] = math.exp(-(at - t) / tau)
    assert_allclose(time_surface(stream, tau, at_us=at), expected, atol=1e-6)


def test_a_surface_is_seen_from_its_last_event():
    stream = synthetic_stream(500)
    assert time_surface(stream).max() == 1.0


@pytest.mark.parametrize("size", ["events", "sensor"])
@given(found=rows)
def test_on_a_device_the_last_event_wins_too(found, size):
    stream = stream_of(found)
    frames = min(len(stream), 3)
    expected = event_frames(stream, frames, size=size)
    for drawn, frame in zip(event_frames_on(stream, torch.device("cpu"), frames, size=size), expected, strict=True):
        assert_array_equal(drawn.numpy(), frame)


def test_sizes():
    stream = EventStream.from_arrays(*(np.array([v]) for v in (2, 1, 0, 1)), sensor_size=(WIDTH, HEIGHT))
    assert event_frame(stream).shape == (2, 3, 3)
    assert event_frame(stream, size="sensor").shape == (HEIGHT, WIDTH, 3)
    assert event_histogram(stream).shape == (2, HEIGHT, WIDTH)
    assert event_histogram(stream, size="events").shape == (2, 2, 3)
    empty = stream.slice(0, 0)
    assert (event_frame(empty, size="sensor") == 255).all()
    assert not event_histogram(empty).any()
    unknown = EventStream.from_arrays(*(np.array([v]) for v in (2, 1, 0, 1)))
    for draw in (event_histogram, voxel_grid, time_surface):
        with pytest.raises(EventStreamError, match="does not say its sensor's size"):
            draw(unknown)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: event_frame(s.slice(0, 0)), "at least one to size a frame by"),
        (lambda s: voxel_grid(s, 0), "n_time_bins: found 0"),
        (lambda s: voxel_grid(s.slice(0, 0)), "events: found none"),
        (lambda s: time_surface(s, 0.0), "tau_us: found 0.0"),
        (lambda s: time_surface(s, math.nan), "tau_us: found nan"),
        (lambda s: time_surface(s.slice(0, 0)), "events: found none"),
        (lambda s: time_surface(s, at_us=0), "the last event"),
        (lambda s: split_equal_time(s, 0), "n_time_bins"),
        (lambda s: list(slice_by_time(s, 0)), "window"),
        (lambda s: list(slice_by_time(s, 10, overlap=10)), "less than the window"),
        (lambda s: list(slice_by_event_count(s, 10, overlap=-1)), "overlap"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(EventStreamError, match=message):
        call(synthetic_stream(100))


@given(rows, st.integers(1, 7))
def test_equal_times_hold_every_event_once(found, bins):
    stream = stream_of(found)
    runs = split_equal_time(stream, bins)
    assert len(runs) == bins
    assert_array_equal(np.concatenate([run.t for run in runs]), stream.t)
    first, duration = int(stream.t[0]), stream.duration_us
    for i, run in enumerate(runs[:-1]):
        low, high = first + duration * i // bins, first + duration * (i + 1) // bins
        assert all(low <= t < high for t in run.t.tolist())


@given(rows, st.integers(1, 30_000), st.data())
def test_windows_of_time_equal_a_brute_force_slice(found, length, data):
    stream = stream_of(found)
    length = max(length, stream.duration_us // 50)
    overlap = data.draw(st.integers(0, min(length - 1, length // 2)))
    whole = list(slice_by_time(stream, length, overlap=overlap))
    everything = list(slice_by_time(stream, length, overlap=overlap, include_incomplete=True))
    assert len(everything) >= len(whole)
    first, end = int(stream.t[0]), int(stream.t[-1]) + 1
    for i, run in enumerate(everything):
        start = first + i * (length - overlap)
        stop = min(start + length, end)
        assert run.t.tolist() == [t for t in stream.t.tolist() if start <= t < stop]
        assert (i < len(whole)) == (start + length <= end)


@given(rows, st.integers(1, 50), st.data())
def test_windows_of_count(found, length, data):
    stream = stream_of(found)
    overlap = data.draw(st.integers(0, length - 1))
    whole = list(slice_by_event_count(stream, length, overlap=overlap))
    assert all(len(run) == length for run in whole)
    starts = [i * (length - overlap) for i in range(len(whole) + 1)]
    for (start, _), run in zip(pairwise(starts), whole, strict=True):
        assert_array_equal(run.x, stream.x[start : start + length])
    assert starts[-1] + length > len(stream)


def test_real_recordings_in_every_way(recordings_dir):
    for path in sorted(recordings_dir.glob("*.npy")):
        stream = read_events(path)
        counts = event_histogram(stream, size="events")
        assert counts.sum() == len(stream)
        assert_allclose(voxel_grid(stream, 5, size="events").sum(), 2.0 * stream.p.sum() - len(stream), rtol=1e-3)
        surface = time_surface(stream, size="events")
        assert_array_equal(surface > 0, counts > 0)
        frame = event_frame(stream)
        assert_array_equal((frame != 255).any(axis=2), counts.sum(axis=0) > 0)
        for drawn, expected in zip(event_frames_on(stream, torch.device("cpu")), event_frames(stream), strict=True):
            assert_array_equal(drawn.numpy(), expected)
