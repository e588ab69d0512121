"""npz files that are bombs or lie about themselves."""

from __future__ import annotations

import numpy as np
import pytest

from unfuse.errors import EventFileError, UnfuseError
from unfuse.events import read_events


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


COLUMNS = {
    "x": np.arange(20, dtype="u2"), "y": np.arange(20, dtype="u2"), "t": np.arange(20) * 100,
    "p": (np.arange(20) % 2).astype("u1"),
}  # fmt: skip
RECORD = np.zeros(20, [("x", "u2"), ("y", "u2"), ("t", "i8"), ("p", "u1")])
for _name, _column in COLUMNS.items():
    RECORD[_name] = _column


@pytest.mark.parametrize(
    "arrays",
    [
        COLUMNS | {"height": 260, "width": 346},
        COLUMNS | {"fps": np.float32(30), "sequence": np.array("zurich"), "matrix": np.eye(3)},
        COLUMNS | {"meta": np.array({"a": 1}, dtype=object)},
        {"X": COLUMNS["x"], "Y": COLUMNS["y"], "timestamps": COLUMNS["t"], "Polarity": COLUMNS["p"]},
        {"x": COLUMNS["x"], "y": COLUMNS["y"], "t_ns": COLUMNS["t"] * 1000, "pol": COLUMNS["p"]},
        {"events": RECORD, "width": 346, "fps": np.float64(25)},
        {"events": np.array([RECORD[:9], RECORD[9:]], dtype=object), "duration": np.int64(5)},
        {"arr_0": RECORD},
    ],
    ids=lambda arrays: " ".join(arrays),
)
def test_arrays_beside_the_columns(tmp_path, arrays):
    path = tmp_path / "a.npz"
    np.savez(path, allow_pickle=True, **arrays)
    stream = read_events(path)
    for name, column in COLUMNS.items():
        assert np.array_equal(getattr(stream, name), column)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": RECORD, "b": RECORD}, "recordings a, b"),
        ({"width": 3, "fps": np.float32(3)}, "arrays width, fps"),
        ({"ts": COLUMNS["t"], "time": COLUMNS["t"], "x": COLUMNS["x"]}, "both 'ts' and 'time'"),
        ({"x": COLUMNS["x"], "y": COLUMNS["y"], "t": COLUMNS["t"], "width": 3}, "also p"),
    ],
)
def test_arrays_that_are_no_one_recording(tmp_path, arrays, words):
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    with pytest.raises(EventFileError, match=words):
        read_events(path)
