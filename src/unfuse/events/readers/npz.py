"""``.npz``: arrays x, y, t and p, or one record or list of records of them (EventBench), as ``numpy.savez`` writes it.

A zip archive can claim any size: each member is measured before it is unpacked, and unpacked no further.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any, Final

from unfuse.errors import EventFileError
from unfuse.events.readers.npy import parse_npy, stream_of
from unfuse.events.stream import EventStream

MAGIC: Final = b"PK\x03\x04"
_ALIASES: Final = {"timestamp": "t", "polarity": "p"}
_MAX_MEMBERS: Final = 64
_MAX_EXPANSION: Final = 200
"""Unpacked bytes for each packed byte; events compress a few times."""


def read_npz(path: Path) -> EventStream:
    """Read and validate one recording.

    Raises:
        UnsafeFileError: a member holds anything but plain arrays.
        EventFileError: damaged, oversized, or without x, y, t and p.
        EventStreamError: the columns are not a valid stream.
    """
    source = str(path)
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = _arrays(archive, source, path.stat().st_size)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise EventFileError(source, found=f"an unreadable .npz ({reason})", expected="an undamaged file") from None
    if len(arrays) == 1:
        (value,) = arrays.values()
        return stream_of(value, source)
    return stream_of(arrays, source)


def _arrays(archive: zipfile.ZipFile, source: str, packed: int) -> dict[str, Any]:
    members = archive.infolist()
    if len(members) > _MAX_MEMBERS:
        raise EventFileError(source, found=f"{len(members)} members", expected=f"at most {_MAX_MEMBERS}")
    total = sum(member.file_size for member in members)
    if total > _MAX_EXPANSION * packed:
        raise EventFileError(source, found=f"{packed} bytes that claim {total}", expected="real events")
    arrays: dict[str, Any] = {}
    for member in members:
        name = member.filename.removesuffix(".npy").lower()
        if member.filename == name or _ALIASES.get(name, name) in arrays:
            raise EventFileError(source, found=f"a member {member.filename!r}", expected="arrays, each once")
        with archive.open(member) as file:
            data = file.read(member.file_size + 1)
        if len(data) > member.file_size:
            raise EventFileError(source, found=f"more of {name} than its entry says", expected="an honest archive")
        arrays[_ALIASES.get(name, name)] = parse_npy(data, f"{source}: {name}")
    return arrays
