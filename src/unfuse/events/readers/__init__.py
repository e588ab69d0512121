"""One module a file format; what a file is, its first bytes say, not its name."""

from __future__ import annotations

from pathlib import Path

from unfuse.errors import EventFileError, FileAccessError
from unfuse.events.readers import child, dat, npy, npz, raw, text
from unfuse.events.stream import EventStream, TimeWindow

_HDF5 = b"\x89HDF\r\n\x1a\n"
_MAX_WHOLE_BYTES = 8 << 30
"""Of a format that is read whole; a sparse file of any size costs nobody anything."""
_FORMATS = "EventGPT .npy or .npz, DSEC events.h5, Prophesee RAW or DAT, AEDAT4, or text"


def read_events(path: str | Path, *, window: TimeWindow | None = None) -> EventStream:
    """Reads a recording of any format in ``docs/events.md``.

    Args:
        path: the file.
        window: only this stretch of the recording's own clock; long recordings are then not loaded whole.

    Raises:
        FileAccessError: missing or unreadable.
        EventFileError: an unknown format, truncated or corrupt; ``UnsafeFileError`` where it asks for code.
        EventStreamError: the events are not a valid stream, or none lie in the window.
        MissingPackageError: a format of an extra that is not installed.
    """
    file = Path(path)
    try:
        with file.open("rb") as opened:
            head = opened.read(256)
        return _read(file, head, window)
    except OSError as error:
        raise FileAccessError(str(path), found=error.strerror or error, expected="a readable event file") from None


def _read(file: Path, head: bytes, window: TimeWindow | None) -> EventStream:
    if head.startswith((npy.MAGIC, npz.MAGIC)):
        if (size := file.stat().st_size) > _MAX_WHOLE_BYTES:
            raise EventFileError(
                str(file), found=f"{size} bytes", expected=f"at most {_MAX_WHOLE_BYTES} in a format that is read whole"
            )
        stream = npy.read_npy(file) if head.startswith(npy.MAGIC) else npz.read_npz(file)
        return stream if window is None else stream.window(window)
    if head.startswith(_HDF5):
        return child.decode("dsec", file, window)
    if head.startswith(b"#!AER-DAT4"):
        return child.decode("aedat4", file, window)
    if head.startswith(b"%"):
        return raw.read_raw(file, window) if raw.is_raw(file) else dat.read_dat(file, window)
    if text.is_text(head):
        return text.read_text(file, window)
    raise EventFileError(str(file), found=_described(head), expected=_FORMATS)


def _described(head: bytes) -> str:
    if not head:
        return "an empty file"
    if head.startswith(b"#!AER-DAT"):
        return "AEDAT of a version before 4"
    return f"an unknown format that starts with {head[:8].hex(' ')}"
