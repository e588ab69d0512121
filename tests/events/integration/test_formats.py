"""Every format: every event, any window, and damage that says so."""

from __future__ import annotations

import os

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from tests.events.formats import FORMATS
from tests.events.recordings import STREAM
from unfuse.errors import EventFileError, EventStreamError, UnfuseError
from unfuse.events import TimeWindow, read_events, stream


@pytest.mark.parametrize("name", FORMATS)
def test_every_event(folder, name):
    got = read_events(folder / name)
    for column in "xytp":
        assert_array_equal(getattr(got, column), getattr(STREAM, column))
    if name.endswith((".raw", ".dat", ".aedat4", ".h5")):
        assert got.sensor_size == (640, 480)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("window", [(0, 1000), (33_333, 77_777), (149_000, 10**9)])
def test_any_window(folder, name, window):
    inside = (STREAM.t >= window[0]) & (STREAM.t < window[1])
    got = read_events(folder / name, window=TimeWindow(start_us=window[0], stop_us=window[1]))
    for column in "xytp":
        assert_array_equal(getattr(got, column), getattr(STREAM, column)[inside])


@pytest.mark.parametrize("name", FORMATS)
def test_a_window_without_events(folder, name):
    with pytest.raises(EventStreamError, match="no events"):
        read_events(folder / name, window=TimeWindow(start_us=10**9, stop_us=10**9 + 1))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"% evt 2.0\n% end\n\0\0\0\x50", "a word of unknown type near word 0"),
        (b"% evt 2.0\n% end\n\0\0\0", "a last word that is cut off"),
        (b"% evt 2.0\n% end\n", "no events"),
        (b"% evt 2.1\n% end\n", "EVT 2.1"),
        (b"% evt 3.0\n% end\n", "no events"),
        (b"% Version 2\n\x0c\x08\1\2\3", "a last event that is cut off"),
        (b"% Version 2\n\x28\x08", r"event type and size \[40, 8\]"),
        (b"% Version 2\n\x0c\x08", "no events"),
        (b"1 2 3\n", "3 numbers a line"),
        (b"1 2 3 1\n1 2 nan 1\n", "nan or infinity"),
        (b"1 2 3 1\n1 2 x 1\n", "no event"),
        (b"x,y,t\n1,2,3\n", "line 1: found no column p"),
        (b"1 1 1 1\n", "both t x y p and x y p t"),
        (b"5 9 9 9\n4 9 9 2\n", "neither"),
        (b"x y t p\n1 2 3 0.5\n", "a fraction"),
        (b"x y t p\n1 2 1e30 1\n", r"t: found 1e\+30, expected less than 2\*\*53"),
        (b"x y t p\n1 2 -7 1\n", "microseconds from 0 on"),
        (b"x y t p\n1 \xff 3 1\n", "unknown format"),
        (b"x y t p\n", "no events"),
        (b"640 480\n7 640 3 1\n8 9 3 0\n", "0 to 639"),
    ],
)
def test_damaged_files_say_so(tmp_path, data, message):
    path = tmp_path / "a"
    path.write_bytes(data)
    with pytest.raises(UnfuseError, match=message):
        read_events(path)


def test_wrong_endianness_is_read_as_its_dtype_says(tmp_path):
    record = np.zeros(len(STREAM), [("x", ">u2"), ("y", ">u2"), ("t", ">i8"), ("p", "u1")])
    for name in "xytp":
        record[name] = getattr(STREAM, name)
    np.save(tmp_path / "a.npy", record)
    got = read_events(tmp_path / "a.npy")
    for name in "xytp":
        assert_array_equal(getattr(got, name), getattr(STREAM, name))
    # A swapped word that says nothing of it gives coordinates or times that cannot be.
    np.save(tmp_path / "a.npy", record.view(record.dtype.newbyteorder()))
    with pytest.raises(EventStreamError):
        read_events(tmp_path / "a.npy")


@pytest.mark.parametrize("name", ["eventgpt.npy", "columns.npz"])
def test_a_sparse_file_of_a_terabyte_is_not_read(folder, tmp_path, name):
    path = tmp_path / name
    path.write_bytes((folder / name).read_bytes())
    os.truncate(path, 1 << 40)
    with pytest.raises(EventFileError, match="1099511627776 bytes"):
        read_events(path)


@pytest.mark.parametrize("name", ["evt2.raw", "cd.dat", "named.csv"])
def test_more_events_than_fit_are_refused(folder, monkeypatch, name):
    monkeypatch.setattr(stream, "MAX_EVENTS", 1000)
    with pytest.raises(EventStreamError, match="at most 1000 at once"):
        read_events(folder / name)
