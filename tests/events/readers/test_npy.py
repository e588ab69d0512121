"""EventGPT's format read without pickle, and files that try to make it do more."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct

import numpy as np
import pytest

from tests.started import not_hanging
from unfuse.errors import EventFileError, UnfuseError, UnsafeFileError
from unfuse.events import read_events, write_eventgpt_npy
from unfuse.events.pickled_arrays import load_pickled_arrays
from unfuse.testing import synthetic_stream

COLUMNS = {
    "x": np.arange(20, dtype=np.uint16),
    "y": np.arange(20, dtype=np.uint16),
    "t": np.arange(20, dtype=np.uint16) * 100,
    "p": (np.arange(20) % 2).astype(np.uint8),
}


def npy(pickled):
    """A ``.npy`` header of a 0-d object array, followed by any bytes."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"
    header += b" " * (-(10 + len(header) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + pickled


def wrapped(value, protocol=3):
    return npy(pickle.dumps(value, protocol=protocol))


def put(tmp_path, data):
    path = tmp_path / "events.npy"
    path.write_bytes(data)
    return path


def saved(tmp_path, value):
    path = tmp_path / "events.npy"
    np.save(path, value, allow_pickle=True)
    return path


def check(stream):
    for name, column in COLUMNS.items():
        assert np.array_equal(getattr(stream, name), column), name


def test_as_numpy_saves_it(tmp_path):
    check(read_events(saved(tmp_path, np.array(COLUMNS, dtype=object))))


@pytest.mark.parametrize("protocol", range(2, 5))
def test_binary_protocols(tmp_path, protocol):
    check(read_events(put(tmp_path, wrapped(COLUMNS, protocol))))


def test_protocol_5_is_refused_by_name(tmp_path):
    """numpy pickles arrays by another function there; no known event data set uses it."""
    with pytest.raises(UnsafeFileError, match="_frombuffer"):
        read_events(put(tmp_path, wrapped(COLUMNS, 5)))


def test_round_trip_with_our_writer(tmp_path):
    stream = synthetic_stream(1000)
    write_eventgpt_npy(tmp_path / "a.npy", stream)
    again = read_events(tmp_path / "a.npy")
    theirs = np.load(tmp_path / "a.npy", allow_pickle=True).item()
    for name in "xytp":
        assert np.array_equal(getattr(again, name), getattr(stream, name))
        assert np.array_equal(theirs[name], getattr(stream, name))
    assert [p.name for p in tmp_path.iterdir()] == ["a.npy"]


def test_plain_record_array(tmp_path):
    records = np.zeros(20, dtype=[("p", "u1"), ("t", "<i8"), ("x", "<u2"), ("y", "<u2")])
    for name, column in COLUMNS.items():
        records[name] = column
    check(read_events(saved(tmp_path, records)))


def test_pickled_record_array(tmp_path):
    records = np.zeros(20, dtype=[("p", "u1"), ("t", "<i8"), ("x", "<u2"), ("y", "<u2")])
    for name, column in COLUMNS.items():
        records[name] = column
    check(read_events(put(tmp_path, wrapped(records))))


def test_big_endian_and_fortran_order(tmp_path):
    columns = COLUMNS | {"t": COLUMNS["t"].astype(">i8")}
    check(read_events(put(tmp_path, wrapped(columns))))
    value = load_pickled_arrays(pickle.dumps(np.asfortranarray(np.arange(6).reshape(2, 3)), protocol=3), "s")
    assert np.array_equal(value, np.arange(6).reshape(2, 3))


def test_real_recordings_equal_numpys_reading(recordings_dir):
    for path in sorted(recordings_dir.glob("*.npy")):
        ours, theirs = read_events(path), np.load(path, allow_pickle=True).item()
        for name in "xytp":
            assert np.array_equal(getattr(ours, name), theirs[name])


class Calls:
    """Pickles to a call of anything."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("where", ["alone", "column", "inside"])
def test_code_is_named_and_not_run(tmp_path, protocol, where):
    sentinel = tmp_path / "ran"
    attack = Calls(os.system, f"touch {sentinel}")
    value = {"alone": attack, "column": COLUMNS | {"x": attack}, "inside": {"x": [attack]}}[where]
    with pytest.raises(UnsafeFileError) as error:
        read_events(put(tmp_path, wrapped(value, protocol)))
    assert not sentinel.exists()
    # Protocols 0 and 1 spell even plain arrays through helpers that are refused before the attack is reached.
    assert "posix.system" in str(error.value) or protocol < 2


@pytest.mark.parametrize("function", [eval, exec, __import__, open, getattr])
def test_builtins_are_refused(tmp_path, function):
    with pytest.raises(UnsafeFileError, match=function.__name__):
        read_events(put(tmp_path, wrapped(Calls(function, "1"))))


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntC\x01btR"
U2 = b"cnumpy\ndtype\n(X\x02\x00\x00\x00u2I00\nI01\ntR(I3\nX\x01\x00\x00\x00<NNNI-1\nI-1\nI0\ntb"


def array_with(dtype, shape, raw):
    return ARRAY + b"(I1\n(" + b"".join(b"I%d\n" % n for n in shape) + b"t" + dtype + b"I00\n" + raw + b"tb."


def test_the_forged_array_template_is_sound():
    value = load_pickled_arrays(array_with(U2, (2,), b"C\x04\x01\x00\x02\x00"), "s")
    assert value.tolist() == [1, 2]


VOID = b"cnumpy\ndtype\n(X\x02\x00\x00\x00V8I00\nI01\ntR"
OBJECT = b"cnumpy\ndtype\n(X\x02\x00\x00\x00O8I00\nI01\ntR(I3\nX\x01\x00\x00\x00|NNNI-1\nI-1\nI0\ntb"
CRASHER = VOID + b"(I3\nX\x01\x00\x00\x00|N(X\x01\x00\x00\x00at(dX\x01\x00\x00\x00a(" + OBJECT + b"I0\ntsI8\nI1\nI0\ntb"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("objects from raw bytes", array_with(OBJECT, (1,), b"C\x08AAAAAAAA")),
        ("record with an object field", array_with(CRASHER, (1,), b"C\x08AAAAAAAA")),
        ("negative shape", array_with(U2, (-1,), b"C\x02AA")),
        ("overflowing shape", array_with(U2, (2**40, 2**40), b"C\x02AA")),
        ("too few bytes", array_with(U2, (4,), b"C\x02AA")),
        ("too many bytes", array_with(U2, (1,), b"C\x04AAAA")),
        ("persistent id", b"Pid\n."),
        ("binary persistent id", b"X\x01\x00\x00\x00aQ."),
        ("extension code", b"\x82\x01."),
        ("INST", b"(ios\nsystem\n."),
        ("OBJ", b"(cos\nsystem\no."),
        ("NEWOBJ", b"cos\nsystem\n)\x81."),
        ("numpy global of another name", b"cnumpy\nload\n(X\x01\x00\x00\x00atR."),
        ("huge long", b"\x8b\xff\xff\xff\x7f1."),
        ("huge bytes", b"\x8e" + struct.pack("<Q", 2**62) + b"."),
        ("empty stack", b"0."),
        ("no stop", b"N"),
        ("unhashable key", b"}(]N" + b"u."),
        ("memo that is not there", b"h\x07."),
        ("itself inside itself", b"]q\x00h\x00a."),
        ("deep nesting", b"]" * 50_000 + b"a" * 49_999 + b"."),
        ("a bare global", b"cnumpy\nndarray\n."),
        ("state on a list", b"]}b."),
    ],
)
def test_forged_pickles(tmp_path, name, data):
    with not_hanging(), pytest.raises(EventFileError) as error:
        read_events(put(tmp_path, npy(data)))
    assert "\n" not in str(error.value)


def test_nested_references_do_not_unfold(tmp_path):
    """Ten levels, each naming the one below a hundred times, are 10**20 items if followed."""
    data = b"(]q\x00"
    for level in range(10):
        data += b"](" + b"h" + bytes([level]) + (b"h" + bytes([level])) * 99 + b"eq" + bytes([level + 1])
    with not_hanging(), pytest.raises(UnsafeFileError, match="nested too deep or too large"):
        read_events(put(tmp_path, npy(data + b"l.")))


def test_shared_array_is_built_once():
    data = array_with(U2, (2,), b"C\x04\x01\x00\x02\x00")[:-1] + b"q\x00(h\x00h\x00h\x00l."
    with pytest.raises(EventFileError):
        load_pickled_arrays(data, "s")  # two objects left on the stack
    value = load_pickled_arrays(b"(" + array_with(U2, (2,), b"C\x04\x01\x00\x02\x00")[:-1] + b"q\x00h\x00h\x00l.", "s")
    assert value[0] is value[1] is value[2]


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"{'descr': '|O', 'shape': ()}", "without descr and shape"),
        (b"__import__('os')", "malformed header"),
        (b"{'descr': '<f8', 'fortran_order': False, 'shape': (2,)}", "record of x, y, t and p"),
        (b"{'descr': [('x', '|O')], 'fortran_order': False, 'shape': (2,)}", "integer fields"),
        (b"{'descr': [('x', '<u2')], 'fortran_order': False, 'shape': (10**9,)}", "malformed header"),
        (b"{'descr': [('x', '<u2')], 'fortran_order': False, 'shape': (999999999999,)}", "1999999999998"),
        (b"{'descr': [('x', '<u2')], 'fortran_order': False, 'shape': (2, 2)}", "one dimension"),
    ],
)
def test_forged_headers(tmp_path, header, words):
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"AAAA"
    with pytest.raises(EventFileError, match=words):
        read_events(put(tmp_path, data))


def test_missing_column(tmp_path):
    with pytest.raises(EventFileError, match="also t"):
        read_events(put(tmp_path, wrapped({k: v for k, v in COLUMNS.items() if k != "t"})))


def test_truncated_anywhere(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.array(COLUMNS, dtype=object), allow_pickle=True)
    data = buffer.getvalue()
    for size in [*range(0, 140, 7), *range(140, len(data), len(data) // 20)]:
        with pytest.raises(UnfuseError):
            read_events(put(tmp_path, data[:size]))


def test_mutations_end_in_one_typed_error(tmp_path):
    """Four thousand damaged copies: each reads as valid events or is refused; none crashes, hangs or raises else."""
    buffer = io.BytesIO()
    np.save(buffer, np.array(COLUMNS, dtype=object), allow_pickle=True)
    original = buffer.getvalue()
    rng = random.Random(0)
    outcomes = {"ok": 0, "refused": 0}
    path = tmp_path / "events.npy"
    for _ in range(4000):
        data = bytearray(original)
        for _ in range(rng.randint(1, 4)):
            kind = rng.random()
            at = rng.randrange(len(data))
            if kind < 0.6:
                data[at] = rng.randrange(256)
            elif kind < 0.8:
                del data[at : at + rng.randint(1, 8)]
            else:
                data[at:at] = rng.randbytes(rng.randint(1, 8))
        path.write_bytes(data)
        try:
            stream = read_events(path)
            assert len(stream.x) == len(stream.t)
            outcomes["ok"] += 1
        except UnfuseError:
            outcomes["refused"] += 1
    assert outcomes["ok"] > 0
    assert outcomes["refused"] > 1000


def placed(names, formats, offsets, size):
    names, formats = names.split(), formats.split()
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": size})


@pytest.mark.parametrize(
    "dtype",
    [
        placed("x y p t", "<u2 <u2 <i2 <i8", [0, 2, 4, 8], 16),  # Metavision's EventCD
        np.dtype([("x", "u2"), ("y", "u2"), ("p", "u1"), ("t", "i8")], align=True),
        placed("t x y p", "<i8 <u2 <u2 ?", [3, 11, 15, 20], 32),
        np.dtype([("timestamp", "<i8"), ("x", ">u2"), ("y", "<i4"), ("polarity", "?")]),
        np.dtype([(("time of the event", "t"), "<i8"), ("x", "<u2"), ("y", "<u2"), ("p", "i1")]),
        np.dtype([("t", "<i8"), ("x", "<u2"), ("y", "<u2"), ("p", "i1"), ("flow", "<f4", (2,)), ("label", "S5")]),
        np.dtype([("t", "<i8"), ("x", "<u2"), ("y", "<u2"), ("p", "i1"), ("box", [("a", "<f4"), ("b", "<u8")])]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("pickled", [False, True])
def test_records_with_gaps_and_further_fields(tmp_path, dtype, pickled):
    names = {"timestamp": "t", "polarity": "p"}
    records = np.zeros(20, dtype)
    for name in dtype.names:
        if names.get(name, name) in COLUMNS:
            records[name] = COLUMNS[names.get(name, name)]
    if pickled and any(dtype[name].subdtype or dtype[name].names for name in dtype.names):
        return
    check(read_events(put(tmp_path, wrapped(records)) if pickled else saved(tmp_path, records)))


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize(
    "more",
    [
        {"time_start": np.uint16(3), "num_events": np.int64(20), "fps": np.float32(3), "valid": np.bool_(True)},
        {"camera": "left", "size": (346, 260), "notes": [1, "a", None, 2.5, {"b": 1}], 7: "a number as key"},
        {"names": np.array(["a", "bc"]), "raw": np.array([b"a"]), "c": np.complex64(1), "matrix": np.eye(3)},
        {"at": np.datetime64("2020-01-01"), "for": np.timedelta64(3, "s")},
    ],
)  # fmt: skip
def test_metadata_beside_the_columns(tmp_path, more, protocol):
    check(read_events(put(tmp_path, wrapped(COLUMNS | more, protocol))))


def test_other_names(tmp_path):
    names = {"x": "x", "y": "y", "t": "ts", "p": "pol"}
    check(read_events(saved(tmp_path, {names[k]: v for k, v in COLUMNS.items()})))
    nanoseconds = COLUMNS["t"].astype("i8") * 1000
    check(read_events(saved(tmp_path, COLUMNS | {"t": nanoseconds}), time_unit="ns"))
    check(read_events(saved(tmp_path, {k: v for k, v in COLUMNS.items() if k != "t"} | {"t_ns": nanoseconds})))


def test_metadata_cannot_bring_code_or_stand_for_a_column(tmp_path):
    with pytest.raises(UnsafeFileError, match="posix.system"):
        read_events(put(tmp_path, wrapped(COLUMNS | {"meta": Calls(os.system, "true")})))
    for wrong in (np.int64(3), np.array("a"), np.datetime64("2020-01-01"), None, np.array(["a"] * 20)):
        with pytest.raises(UnfuseError):
            read_events(put(tmp_path, wrapped(COLUMNS | {"t": wrong})))


def test_empty_arrays_beside_the_columns(tmp_path):
    check(read_events(put(tmp_path, wrapped(COLUMNS | {"none": np.zeros((0, 2)), "triggers": np.array([], "i8")}))))
    with pytest.raises(UnfuseError, match="no events"):
        read_events(put(tmp_path, wrapped({name: column[:0] for name, column in COLUMNS.items()})))
