"""One module a file format; what a file is, its first bytes say, not its name."""

from __future__ import annotations

from pathlib import Path

from unfuse.errors import EventFileError, FileAccessError
from unfuse.events.readers import dsec, npy
from unfuse.events.stream import EventStream, TimeWindow


def read_events(path: str | Path, *, window: TimeWindow | None = None) -> EventStream:
    """Reads a recording: EventGPT ``.npy`` or DSEC ``events.h5``.

    Args:
        path: the file.
        window: only this stretch of the recording's own clock; a DSEC file is then not loaded whole.

    Raises:
        FileAccessError: missing or unreadable.
        EventFileError: an unknown format, truncated or corrupt; ``UnsafeFileError`` where it asks for code.
        EventStreamError: the events are not a valid stream, or none lie in the window.
    """
    file = Path(path)
    try:
        with file.open("rb") as opened:
            head = opened.read(16)
        if head.startswith(npy.MAGIC):
            stream = npy.read_npy(file)
            return stream if window is None else stream.window(window)
    except OSError as error:
        raise FileAccessError(str(path), found=error.strerror or error, expected="a readable event file") from None
    if head.startswith(dsec.MAGIC):
        return dsec.read_dsec(file, window)
    raise EventFileError(str(path), found=_described(head), expected="EventGPT .npy or DSEC events.h5")


def _described(head: bytes) -> str:
    if not head:
        return "an empty file"
    if head.startswith(b"PK"):
        return "a zip archive (.npz)"
    if head.startswith((b"% ", b"%\r")):
        return "a camera vendor's raw file"
    if head.startswith(b"#!AER-DAT"):
        return "an AEDAT file"
    return f"an unknown format that starts with {head[:8].hex(' ')}"
