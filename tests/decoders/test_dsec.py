"""DSEC's HDF5, written here as the data set describes it."""

from __future__ import annotations

import numpy as np
import pytest

from unfuse.decoders import dsec
from unfuse.errors import EventFileError, EventStreamError, MissingPackageError
from unfuse.events import TimeWindow, read_events
from unfuse.events.readers import decoder_client
from unfuse.testing import synthetic_stream

h5py = pytest.importorskip("h5py")
hdf5plugin = pytest.importorskip("hdf5plugin")

STREAM = synthetic_stream(200_000, duration_us=120_500)


def write(path, *, index=True, columns="xytp"):
    with h5py.File(path, "w") as file:
        for name, dtype in (("x", "u2"), ("y", "u2"), ("t", "u4"), ("p", "u1")):
            if name in columns:
                values = getattr(STREAM, name).astype(dtype)
                file.create_dataset(f"events/{name}", data=values, chunks=(4096,), **hdf5plugin.Blosc(cname="zstd"))
        file["t_offset"] = np.int64(50_000_000_000)
        file.attrs.update(width=640, height=480)
        if index:
            last = int(STREAM.t[-1]) // 1000
            file["ms_to_idx"] = np.searchsorted(STREAM.t, np.arange(last + 1) * 1000).astype("u8")
    return path


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize(
    "window",
    [(0, 1), (0, 50_000), (12_345, 12_346), (12_345, 67_891), (119_999, 120_400), (120_100, 10**9), (0, 10**9)],
)
def test_windows_are_exact(tmp_path, window, index):
    path = write(tmp_path / "events.h5", index=index)
    inside = (STREAM.t >= window[0]) & (STREAM.t < window[1])
    got = read_events(path, window=TimeWindow(start_us=window[0], stop_us=window[1]))
    assert np.array_equal(got.t, STREAM.t[inside])
    assert np.array_equal(got.x, STREAM.x[inside])
    assert got.sensor_size == (640, 480)


def test_whole_recording(tmp_path):
    got = read_events(write(tmp_path / "events.h5"))
    for name in "xytp":
        assert np.array_equal(getattr(got, name), getattr(STREAM, name))


def test_only_the_window_is_read(tmp_path, monkeypatch):
    path = write(tmp_path / "events.h5")
    read = []
    original = h5py.Dataset.__getitem__

    def counted(self, key):
        value = original(self, key)
        read.append(np.size(value))
        return value

    monkeypatch.setattr(h5py.Dataset, "__getitem__", counted)
    events = sum(len(columns[0]) for columns in dsec.decode(str(path), 60_000, 61_000).batches)
    assert events > 1000
    assert sum(read) < 4 * events + 3 * 3 * events + 100


def test_empty_window(tmp_path):
    path = write(tmp_path / "events.h5")
    with pytest.raises(EventStreamError, match="no events"):
        read_events(path, window=TimeWindow(start_us=10**9, stop_us=10**9 + 5))


def test_other_layout(tmp_path):
    with pytest.raises(EventFileError, match="x, y, t, p"):
        read_events(write(tmp_path / "events.h5", columns="xyt"))


@pytest.mark.parametrize("share", [0.01, 0.5, 0.95])
def test_truncated(tmp_path, share):
    path = write(tmp_path / "events.h5")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(EventFileError, match="unreadable"):
        read_events(path)


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    path = write(tmp_path / "events.h5")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "hdf5plugin.py").write_text("raise ImportError('none', name='hdf5plugin')\n")
    monkeypatch.syspath_prepend(tmp_path / "none")
    decoder_client._slot.close()
    with pytest.raises(MissingPackageError, match=r"no package hdf5plugin.*unfuse\[dsec\]"):
        read_events(path)
    decoder_client._slot.close()


def test_an_index_of_other_events_is_refused(tmp_path):
    path = write(tmp_path / "events.h5")
    with h5py.File(path, "r+") as file:
        file["ms_to_idx"][...] = file["ms_to_idx"][...] // 2
    with pytest.raises(EventFileError, match="a ms_to_idx that is wrong at 61 ms"):
        read_events(path, window=TimeWindow(start_us=60_500, stop_us=61_000))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.create_dataset("events/t", (10**12,), "u4", chunks=(4096,)), "bytes that claim 4000000000000"),
        (lambda f: f.create_dataset("events/t", (200_000,), "f8"), "a list of integers"),
        (lambda f: f.create_dataset("events/t", (2, 100_000), "u4"), "a list of integers"),
        (lambda f: f.create_dataset("events/t", data=STREAM.t[:-1].astype("u4")), "equal lengths"),
        (lambda f: f.create_group("events/t"), "events/{x, y, t, p}"),
        (lambda f: f.create_dataset("events/t", data=STREAM.t[::-1].astype("u4")), "times that never go back"),
        (lambda f: f.create_dataset("events/t", data=STREAM.t - 10), "microseconds from 0 on"),
    ],
)
def test_hostile_layouts(tmp_path, change, message):
    path = write(tmp_path / "events.h5")
    with h5py.File(path, "r+") as file:
        del file["events/t"]
        change(file)
    with pytest.raises((EventFileError, EventStreamError), match=message):
        read_events(path)


@pytest.mark.parametrize("column", ["x", "y", "p", "t"])
@pytest.mark.parametrize("value", [2**9 + 2**8, 2**16 + 2**9, 2**32 + 1, 2**63 + 5])
def test_values_that_would_wrap_to_valid_ones_are_refused(tmp_path, column, value):
    path = write(tmp_path / "events.h5")
    values = getattr(STREAM, column).astype("u8")
    values[1000] = value
    with h5py.File(path, "r+") as file:
        del file[f"events/{column}"]
        file[f"events/{column}"] = values
    with pytest.raises(EventStreamError):
        read_events(path)


@pytest.mark.parametrize("how", ["external link", "soft link over an external link", "raw bytes", "virtual"])
def test_columns_of_other_files_are_refused(tmp_path, how):
    """A stranger's recording may not have other files of this machine read."""
    other = write(tmp_path / "other.h5")
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(4 * 100))
    path = write(tmp_path / "events.h5", index=False, columns="xyp")
    with h5py.File(path, "a") as file:
        if how == "external link":
            file["events/t"] = h5py.ExternalLink(str(other), "events/t")
        elif how == "raw bytes":
            file.create_dataset("events/t", (100,), "u4", external=[(str(raw), 0, 400)])
        elif how == "virtual":
            layout = h5py.VirtualLayout((len(STREAM),), "u4")
            layout[:] = h5py.VirtualSource(str(other), "events/t", (len(STREAM),))
            file.create_virtual_dataset("events/t", layout)
        else:
            file["there"] = h5py.ExternalLink(str(other), "events")
            file["events/t"] = h5py.SoftLink("/there/t")
    with pytest.raises(EventFileError, match="in another file"):
        read_events(path)


def other_sensor(path, reach, *, names="xytp", offset=None, attributes=None, **datasets):
    """DSEC's layout from another sensor; every event of a small grid."""
    n, (width, height) = 4000, reach
    columns = {
        "x": np.arange(n, dtype="u2") * 13 % width, "y": np.arange(n, dtype="u2") * 7 % height,
        "t": np.arange(n, dtype="u4") * 10, "p": (np.arange(n) % 2).astype("u1"),
    }  # fmt: skip
    with h5py.File(path, "w") as file:
        for name, column in zip(names, columns.values(), strict=True):
            file[f"events/{name}"] = column
        for name, value in datasets.items():
            file[f"events/{name}"] = value
        file["events"].attrs.update(attributes or {})
        if offset is not None:
            file["t_offset"] = np.int64(offset)
        file["ms_to_idx"] = np.searchsorted(columns["t"], np.arange(41) * 1000)
    return path


@pytest.mark.parametrize(
    ("width", "height", "more", "size"),
    [
        (1280, 720, {}, (1280, 720)),
        (1280, 720, {"offset": 5}, (1280, 720)),
        (346, 260, {}, (346, 260)),
        (346, 260, {"offset": 5}, (346, 260)),
        (240, 180, {"offset": 5}, (240, 180)),
        (100, 90, {"height": 720, "width": 1280}, (1280, 720)),
        (100, 90, {"attributes": {"width": 346, "height": 260}}, (346, 260)),
        (100, 90, {"attributes": {"sensor_resolution": np.array([260, 346])}}, (346, 260)),
        (100, 90, {"height": np.array([480]), "width": np.array([640])}, (640, 480)),
        (600, 90, {"offset": 5}, (640, 480)),
    ],
)
def test_the_size_of_another_sensor(tmp_path, width, height, more, size):
    stream = read_events(other_sensor(tmp_path / "events.h5", (width, height), **more))
    assert stream.sensor_size == size
    said = any("the reach of the events, is used" in note for note in stream.notes)
    assert said == (size == (width, height))


def test_a_stated_size_that_is_too_small(tmp_path):
    path = other_sensor(tmp_path / "events.h5", (346, 260), width=240, height=180)
    with pytest.raises(EventStreamError, match="expected 0 to 239"):
        read_events(path)
    for wrong in ({"width": 0, "height": 0}, {"width": np.arange(3), "height": 3}, {"width": 2.5, "height": 3}):
        assert read_events(other_sensor(tmp_path / "events.h5", (346, 260), **wrong)).sensor_size == (346, 260)


def test_other_names_of_the_columns(tmp_path):
    stream = read_events(other_sensor(tmp_path / "events.h5", (346, 260), names=("xs", "ys", "timestamp", "polarity")))
    assert len(stream) == 4000
    with pytest.raises(EventFileError, match=r"events/t_ns in ns, expected microseconds"):
        read_events(other_sensor(tmp_path / "events.h5", (346, 260), names=("x", "y", "t_ns", "p")))
    with pytest.raises(EventFileError, match="both"):
        read_events(other_sensor(tmp_path / "events.h5", (9, 9), names=("x", "y", "ts", "p"), time=np.arange(3)))
