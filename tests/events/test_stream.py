"""Input that a stream accepts and refuses, and its messages."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unfuse.errors import EventStreamError
from unfuse.events import EventStream, TimeWindow
from unfuse.testing import synthetic_stream


def make(**changes):
    columns = {"x": np.arange(4), "y": np.arange(4), "t": np.arange(4), "p": np.array([0, 1, 1, 0])}
    sensor = changes.pop("sensor_size", None)
    return EventStream.from_arrays(**(columns | changes), sensor_size=sensor, source="file")


def test_types_and_ownership():
    x = np.arange(4, dtype=np.uint8)
    stream = make(x=x, t=np.arange(4, dtype=np.uint16))
    assert (stream.x.dtype, stream.y.dtype, stream.t.dtype, stream.p.dtype) == (
        np.uint16,
        np.uint16,
        np.int64,
        np.uint8,
    )
    x[0] = 9
    assert stream.x[0] == 0, "not the caller's memory"
    for column in (stream.x, stream.y, stream.t, stream.p):
        with pytest.raises(ValueError, match="read-only"):
            column[0] = 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x": np.arange(3)}, "equal lengths"),
        ({k: np.zeros(0, int) for k in "xytp"}, "no events"),
        ({"x": np.arange(4.0)}, "float64"),
        ({"t": np.array(["a"] * 4)}, "integers"),
        ({"x": np.zeros((2, 2), int)}, "2 dimensions"),
        ({"x": np.array([0, -1, 0, 0])}, "x of event 1: found -1"),
        ({"y": np.array([0, 0, 9000, 0])}, "y of event 2: found 9000"),
        ({"y": np.array([0, 0, 480, 0]), "sensor_size": (640, 480)}, "0 to 479"),
        ({"t": np.array([0, 5, 4, 6])}, "t of event 2: found 4 us after 5 us"),
        ({"t": np.array([-3, 5, 6, 7])}, "from 0 on"),
        ({"t": np.array([2**63] * 4, dtype=np.uint64)}, "below 2"),
        ({"p": np.array([0, 1, 2, 0])}, "p of event 2: found 2"),
        ({"p": np.array([-1, 1, 0, 0])}, "p of event 0: found -1"),
    ],
)
def test_refusals(changes, words):
    with pytest.raises(EventStreamError, match=words) as error:
        make(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("p", [np.array([False, True, True, False]), np.array([-1, 1, 1, -1]), np.array([0, 1, 1, 0])])
def test_polarity_conventions(p):
    assert make(p=p).p.tolist() == [0, 1, 1, 0]


def test_wide_times_from_narrow_types():
    """EventGPT's sample keeps t in 16 bits; differences must not wrap."""
    stream = make(t=np.array([0, 100, 60_000, 65_535], dtype=np.uint16))
    assert stream.duration_us == 65_535


@given(st.integers(0, 60_000), st.integers(1, 20_000))
def test_window_is_half_open(start, length):
    stream = synthetic_stream(500)
    inside = (stream.t >= start) & (stream.t < start + length)
    if not inside.any():
        with pytest.raises(EventStreamError, match="no events"):
            stream.window(TimeWindow(start_us=start, stop_us=start + length))
        return
    part = stream.window(TimeWindow(start_us=start, stop_us=start + length))
    assert np.array_equal(part.t, stream.t[inside])
    assert np.array_equal(part.x, stream.x[inside])


@pytest.mark.parametrize("edges", [(5, 5), (6, 5), (-1, 5)])
def test_impossible_windows(edges):
    with pytest.raises(EventStreamError, match="start < stop"):
        TimeWindow(start_us=edges[0], stop_us=edges[1])
