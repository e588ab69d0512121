"""Names of columns."""

from __future__ import annotations

import pytest

from unfuse.decoders.columns import column_of, find_columns


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("x", ("x", None)), ("X", ("x", None)), ("col", ("x", None)), ("x [px]", ("x", None)), ("rows", ("y", None)),
        ("t", ("t", None)), ("ts", ("t", None)), ("timestamp", ("t", None)), ("Time", ("t", None)),
        ("time_stamp", ("t", None)), ("timestamps", ("t", None)), ("events/t", ("t", None)),
        ("t_us", ("t", "us")), ("timestamp[us]", ("t", "us")), ("Timestamp (ns)", ("t", "ns")), ("time_s", ("t", "s")),
        ("time (sec)", ("t", "s")), ("t-ms", ("t", "ms")), ("timestampUs", ("t", "us")), ("t [µs]", ("t", "us")),
        ("pol", ("p", None)), ("polarity", ("p", None)), ('"p"', ("p", None)), ("Polarities", ("p", None)),
        ("label", None), ("", None), ("tx", None), ("xy", None), ("tns", None), ("s", None), ("us", None),
        ("height", None), ("fps", None), ("p_us", None),
    ],
)  # fmt: skip
def test_a_name(name, expected):
    assert column_of(name) == expected


def test_plain_names_win():
    assert {k: c.name for k, c in find_columns(["timestamp", "t", "x", "col", "y", "p"]).items()} == {
        "t": "t", "x": "x", "y": "y", "p": "p",
    }  # fmt: skip
    with pytest.raises(ValueError, match="both 'ts' and 'timestamp'"):
        find_columns(["ts", "timestamp"])
