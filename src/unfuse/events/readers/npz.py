"""``.npz``: arrays x, y, t and p, or one record or list of records of them (EventBench), as ``numpy.savez`` writes it.

A zip archive can claim any size: each member is measured before it is unpacked, and unpacked no further.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np

from unfuse.decoders.columns import FIELDS, find_columns
from unfuse.errors import EventFileError
from unfuse.events.readers.npy import parse_npy, stream_of
from unfuse.events.stream import EventStream
from unfuse.events.time_units import TimeUnit

MAGIC: Final = b"PK\x03\x04"
_MAX_MEMBERS: Final = 64
_MAX_EXPANSION: Final = 200
"""Unpacked bytes for each packed byte; events compress a few times."""


def read_npz(path: Path, time_unit: TimeUnit | None = None) -> EventStream:
    """Read and validate one recording; members beside the columns stay unread.

    Args:
        path: the file.
        time_unit: unit of the times; None takes the unit in the name of their array, else microseconds.

    Raises:
        UnsafeFileError: a member holds anything but plain arrays.
        EventFileError: damaged, oversized, or without x, y, t and p.
        EventStreamError: the columns are not a valid stream.
    """
    source = str(path)
    try:
        with zipfile.ZipFile(path) as archive:
            value = _value(archive, _members(archive, source, path.stat().st_size), source)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise EventFileError(source, found=f"an unreadable .npz ({reason})", expected="an undamaged file") from None
    return stream_of(value, source, time_unit)


def _members(archive: zipfile.ZipFile, source: str, packed: int) -> dict[str, zipfile.ZipInfo]:
    members = archive.infolist()
    if len(members) > _MAX_MEMBERS:
        raise EventFileError(source, found=f"{len(members)} members", expected=f"at most {_MAX_MEMBERS}")
    total = sum(member.file_size for member in members)
    if total > _MAX_EXPANSION * packed:
        raise EventFileError(source, found=f"{packed} bytes that claim {total}", expected="real events")
    named: dict[str, zipfile.ZipInfo] = {}
    for member in members:
        name = member.filename.removesuffix(".npy")
        if member.filename == name or name in named:
            raise EventFileError(source, found=f"a member {member.filename!r}", expected="arrays, each once")
        named[name] = member
    return named


def _value(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], source: str) -> Any:
    """Return the columns, or the one member that holds all of them."""
    try:
        columns = find_columns(members)
    except ValueError as error:
        raise EventFileError(source, found=f"arrays {error}", expected="each column once") from None
    if len(columns) == len(FIELDS) or (columns and len(members) > 1):
        # With some columns missing, the error of ``stream_of`` names them.
        names = [column.name for column in columns.values()]
        return {name: _parsed(archive, members[name], f"{source}: {name}") for name in names}
    found: dict[str, Any] = {}
    errors: list[EventFileError] = []
    for name, member in members.items():
        try:
            value = _parsed(archive, member, f"{source}: {name}")
        except EventFileError as error:  # metadata, unless it is the only member
            errors.append(error)
        else:
            if isinstance(value, (dict, list)) or getattr(value, "dtype", np.dtype("u1")).names:
                found[name] = value
    if len(found) > 1:
        raise EventFileError(source, found=f"recordings {', '.join(found)[:80]}", expected="one recording")
    if not found:
        listed = f"arrays {', '.join(members)[:80] or 'none'}"
        raise errors[0] if errors and len(members) == 1 else EventFileError(source, found=listed, expected="x, y, t, p")
    (value,) = found.values()
    return value


def _parsed(archive: zipfile.ZipFile, member: zipfile.ZipInfo, source: str) -> Any:
    with archive.open(member) as file:
        data = file.read(member.file_size + 1)
    if len(data) > member.file_size:
        raise EventFileError(source, found="more than its entry says", expected="an honest archive")
    return parse_npy(data, source)
