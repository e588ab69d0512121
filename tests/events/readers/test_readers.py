"""The format of a file is detected by its first bytes."""

from __future__ import annotations

import pytest

from unfuse.errors import EventFileError, FileAccessError
from unfuse.events import read_events


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "an empty file"),
        (b"PK\x03\x04junk", "unreadable .npz"),
        (b"% evt 4.0\n", "EVT 4.0"),
        (b"% a header\n", "event type and size"),
        (b"%", "without an end"),
        (b"#!AER-DAT2.0\r\n", "AEDAT of a version before 4"),
        (b"hello", "68 65 6c 6c 6f"),
        (b"\x93NUMPY", "6 bytes"),
    ],
)
def test_unknown_formats_are_named(tmp_path, data, words):
    path = tmp_path / "events.npy"
    path.write_bytes(data)
    with pytest.raises(EventFileError, match=words):
        read_events(path)


def test_missing_and_directory(tmp_path):
    with pytest.raises(FileAccessError, match="No such file"):
        read_events(tmp_path / "none.npy")
    with pytest.raises(FileAccessError, match="directory"):
        read_events(tmp_path)
