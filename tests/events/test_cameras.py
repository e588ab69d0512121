"""The formats of cameras and tools: every event, any window, and decoders that misbehave."""

from __future__ import annotations

import os
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from tests.events.formats import FORMATS, write_all
from tests.started import PATIENCE_S, not_hanging
from unfuse.errors import EventFileError, EventStreamError, MissingPackageError, UnfuseError
from unfuse.events import TimeWindow, read_events, stream
from unfuse.events.readers import child
from unfuse.testing import synthetic_stream

STREAM = synthetic_stream(60_000, size=(640, 480), duration_us=150_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("formats")
    write_all(place, STREAM)
    return place


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


def evt2(rows, high_every_event=False):
    """Prophesee's description, written out once more."""
    words, high = [], None
    for x, y, t, p in rows:
        if high != t >> 6 or high_every_event:
            high = t >> 6
            words.append((8 << 28) | (high & 0xFFFFFFF))
        words.append((p << 28) | ((t & 63) << 22) | (x << 11) | y)
    return b"% evt 2.0\n% end\n" + struct.pack(f"<{len(words)}I", *words)


@given(
    st.lists(
        st.tuples(st.integers(0, 2047), st.integers(0, 2047), st.integers(0, 2**33), st.integers(0, 1)),
        min_size=1,
        max_size=50,
    ),
    st.booleans(),
)
def test_evt2_by_its_description(tmp_path_factory, rows, often):
    rows = sorted(rows, key=lambda row: row[2])
    path = tmp_path_factory.mktemp("evt2") / "a.raw"
    path.write_bytes(evt2(rows, often))
    got = read_events(path)
    assert list(zip(got.x.tolist(), got.y.tolist(), got.t.tolist(), got.p.tolist(), strict=True)) == rows


def test_evt2_times_go_on_where_28_bits_end(tmp_path):
    path = tmp_path / "a.raw"
    rows = [(1, 2, (1 << 34) - 5, 1), (3, 4, (1 << 34) + 7, 0)]
    path.write_bytes(evt2(rows))
    assert read_events(path).t.tolist() == [row[2] for row in rows]


def test_evt2_events_before_any_time_are_left_out(tmp_path):
    words = [(1 << 28) | (5 << 11) | 5, (8 << 28) | 1, (1 << 28) | (6 << 11) | 6]
    path = tmp_path / "a.raw"
    path.write_bytes(b"% evt 2.0\n" + struct.pack("<3I", *words))
    assert read_events(path).x.tolist() == [6]


@pytest.mark.parametrize(
    ("data", "says"),
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
        (b"x,y,t\n1,2,3\n", "columns x, y, t"),
        (b"1 1 1 1\n", "both t x y p and x y p t"),
        (b"5 9 9 9\n4 9 9 2\n", "neither"),
        (b"x y t p\n1 2 3 0.5\n", "a fraction"),
        (b"x y t p\n1 2 1e30 1\n", r"t: found 1e\+30, expected less than 2\*\*53"),
        (b"x y t p\n1 2 -7 1\n", "microseconds from 0 on"),
        (b"x y t p\n1 \xff 3 1\n", "byte 0xff"),
        (b"x y t p\n", "no events"),
        (b"640 480\n7 640 3 1\n8 9 3 0\n", "0 to 639"),
    ],
)
def test_damaged_files_say_so(tmp_path, data, says):
    path = tmp_path / "a"
    path.write_bytes(data)
    with pytest.raises(UnfuseError, match=says):
        read_events(path)


def test_npz_bombs_and_liars(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.zeros(50_000_000, np.uint8))
    with pytest.raises(EventFileError, match="bytes that claim"):
        read_events(path)
    np.savez(path, x=np.zeros(3), y=np.zeros(3), t=np.zeros(3), p=np.zeros(3))
    with pytest.raises(UnfuseError, match="dtype"):
        read_events(path)
    np.savez(path, **{f"a{i}": np.zeros(1, int) for i in range(80)})
    with pytest.raises(EventFileError, match="80 members"):
        read_events(path)
    np.savez(path, x=np.zeros(3, int), y=np.zeros(3, int))
    with pytest.raises(EventFileError, match="also t, p"):
        read_events(path)


FAKES = {
    "aborts": ("import os; os.abort()", "crashed .signal 6."),
    "exits": ("import os; os._exit(3)", "ended .exit code 3."),
    "hangs": ("import time; time.sleep(100_000)", "said nothing for 6 s"),
    "takes all memory": ("x = bytearray(1 << 40)", "more memory than it may take"),
    "panics": ("class P(BaseException): pass\nraise P('a panic')", "P: a panic"),
    "prints": ("print('{}'); raise ValueError('oh')", "ValueError: oh"),
    "is missing": ("raise ImportError('no', name='evt3')", "no package evt3"),
}


@pytest.mark.parametrize("fake", FAKES)
def test_a_decoder_that_misbehaves_is_one_line_and_the_next_file_is_read(folder, tmp_path, monkeypatch, fake):
    code, says = FAKES[fake]
    body = "\n".join(f"    {line}" for line in code.splitlines())
    raising = code if fake == "is missing" else f"def decode_file_batches(path):\n{body}\nEvents = None"
    (tmp_path / "evt3.py").write_text(raising + "\n")
    # The only one of them that is to be silent for so long.
    monkeypatch.setattr(child, "SILENCE_SECONDS", 6.0 if fake == "hangs" else PATIENCE_S)
    with monkeypatch.context() as patched:
        patched.syspath_prepend(tmp_path)
        child._stop()
        with not_hanging(), pytest.raises((EventFileError, MissingPackageError), match=says) as caught:
            read_events(folder / "evt3.raw")
        assert "\n" not in str(caught.value)
        patched.setattr(child, "SILENCE_SECONDS", PATIENCE_S)
        assert len(read_events(folder / "davis.aedat4")) == len(STREAM)
        child._stop()
    with monkeypatch.context() as patched:
        patched.setattr(child, "SILENCE_SECONDS", PATIENCE_S)
        assert len(read_events(folder / "evt3.raw")) == len(STREAM)


def test_what_a_decoder_gives_is_not_believed(folder, tmp_path, monkeypatch):
    (tmp_path / "evt3.py").write_text(
        "import numpy as np\n"
        "class Events: x = np.array([1, 700]); y = np.array([1, 1]); t = np.array([1, 2]); p = np.array([0, 1])\n"
        "def decode_file_batches(path): yield Events\n"
    )
    with monkeypatch.context() as patched:
        patched.syspath_prepend(tmp_path)
        child._stop()
        with pytest.raises(EventStreamError, match=r"x of event 1: found 700, expected 0 to 639"):
            read_events(folder / "evt3.raw")
    child._stop()


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
