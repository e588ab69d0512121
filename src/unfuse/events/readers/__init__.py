"""One module for each file format; the first bytes of a file tell its format, not its name."""

from __future__ import annotations

from pathlib import Path

from unfuse.errors import EventFileError, FileAccessError
from unfuse.events.readers import dat, decoder_client, npy, npz, raw, text
from unfuse.events.stream import EventStream, TimeWindow
from unfuse.events.time_units import TimeUnit

_HDF5 = b"\x89HDF\r\n\x1a\n"
_AEDAT4 = b"#!AER-DAT4"
_HEAD = 256
_MAX_WHOLE_BYTES = 8 << 30
"""Limit for formats that are read whole; a sparse file can claim any size."""
_FORMATS = "EventGPT .npy or .npz, DSEC events.h5, Prophesee RAW or DAT, AEDAT4, or text"


def read_events(
    path: str | Path, *, window: TimeWindow | None = None, time_unit: TimeUnit | None = None
) -> EventStream:
    """Read a recording of any format in ``docs/events.md``.

    Args:
        path: the file.
        window: part of the recording, on its own clock; a long recording is then not loaded whole.
        time_unit: unit of the times in text, ``.npy`` and ``.npz``; None takes the unit that the file states, else
            decides (text) or takes microseconds. Other formats have one unit, and refuse another.

    Raises:
        FileAccessError: missing or unreadable.
        EventFileError: an unknown format, truncated or corrupt; ``UnsafeFileError`` if it asks for code.
        EventStreamError: the events are not a valid stream, or none lie in the window.
        MissingPackageError: a format of an extra that is not installed.
    """
    file = Path(path)
    try:
        with file.open("rb") as opened:
            head = opened.read(_HEAD)
        return _read(file, head, window, time_unit)
    except OSError as error:
        raise FileAccessError(str(path), found=error.strerror or error, expected="a readable event file") from None


def _read(file: Path, head: bytes, window: TimeWindow | None, unit: TimeUnit | None) -> EventStream:
    if head.startswith((npy.MAGIC, npz.MAGIC)):
        if (size := file.stat().st_size) > _MAX_WHOLE_BYTES:
            raise EventFileError(
                str(file), found=f"{size} bytes", expected=f"at most {_MAX_WHOLE_BYTES} in a format that is read whole"
            )
        stream = npy.read_npy(file, unit) if head.startswith(npy.MAGIC) else npz.read_npz(file, unit)
        return stream if window is None else stream.window(window)
    if _is_text(file, head):
        return text.read_text(file, window, unit)
    if unit is not None:
        raise EventFileError(
            f"{file}: time unit", found=f"{unit!r} for a format that states its own", expected="text, .npy or .npz"
        )
    if head.startswith(_HDF5):
        return decoder_client.decode("dsec", file, window)
    if head.startswith(_AEDAT4):
        return decoder_client.decode("aedat4", file, window)
    if head.startswith(b"%"):
        return raw.read_raw(file, window) if raw.is_raw(file) else dat.read_dat(file, window)
    raise EventFileError(str(file), found=_described(head), expected=_FORMATS)


def _is_text(file: Path, head: bytes) -> bool:
    """Return whether a file is lines of events: RAW and DAT files begin with lines of text, too."""
    if head.startswith(b"#!AER-DAT"):
        return False
    if not head.startswith(b"%"):
        return text.is_text(head)
    if raw.is_raw(file):
        return False
    start = raw.read_header(file)[1]
    with file.open("rb") as opened:
        opened.seek(start)
        return text.is_text(opened.read(_HEAD))


def _described(head: bytes) -> str:
    if not head:
        return "an empty file"
    if head.startswith(b"#!AER-DAT"):
        return "AEDAT of a version before 4"
    return f"an unknown format that starts with {head[:8].hex(' ')}"
