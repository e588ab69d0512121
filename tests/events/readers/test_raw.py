"""EVT2 by its description."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from unfuse.events import read_events


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
