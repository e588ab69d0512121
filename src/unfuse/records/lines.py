"""Append-only files of JSON lines; every line has a checksum, so that damage is detected.

A line is flat ASCII JSON. Its last field, ``line_crc32``, is the CRC-32 of the line without that field:

    crc32('{"sample_id": "a", ...}')  ->  '{"sample_id": "a", ..., "line_crc32": 123}'

A killed process can leave one torn line at the end of a file: readers skip it, and a writer cuts it off before it
appends. A damaged line anywhere else is an error, because it was on the disk once.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from unfuse.errors import RunFolderError
from unfuse.records.atomic import cannot_write
from unfuse.records.conversion import parse_object

_CHECKSUM: Final = re.compile(r', "line_crc32": (\d{1,10})\}\Z')


def sealed(fields: Mapping[str, Any]) -> str:
    """Return plain fields as one line with its checksum, without a line end."""
    # ASCII only: an answer may hold lone surrogates and line separators, a line of the file must not.
    body = json.dumps(fields, allow_nan=False)
    return f'{body[:-1]}, "line_crc32": {zlib.crc32(body.encode("ascii"))}}}'


def unsealed(line: str, *, where: str) -> dict[str, Any]:
    """Return the fields of a line that ``sealed`` made.

    Raises:
        RunFolderError: the line is damaged.
    """
    if not is_whole(line):
        raise RunFolderError(where, found="a damaged line (its checksum does not fit)", expected="a whole record")
    fields = parse_object(line, where=where)
    del fields["line_crc32"]
    return fields


def is_whole(line: str) -> bool:
    """Return whether the line's checksum is present and right."""
    match = _CHECKSUM.search(line)
    if match is None:
        return False
    body = line[: match.start()] + "}"
    return zlib.crc32(body.encode("utf-8", "surrogatepass")) == int(match[1])


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file that ends with a line end; its content is not checked yet."""

    text: str
    where: str
    """File and number, for an error."""
    start: int
    """Offset of its first byte."""
    end: int
    """Offset after its line end."""

    def fields(self) -> dict[str, Any]:
        """Return the plain fields.

        Raises:
            RunFolderError: the line is damaged.
        """
        return unsealed(self.text, where=self.where)


def read_lines(path: Path, *, expected: str) -> Iterator[Line]:
    """Yield every line but a torn last one.

    Args:
        path: the file.
        expected: its content, for the error.

    Raises:
        RunFolderError: the file cannot be read.
    """
    end = 0
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                text = raw.decode("utf-8", "replace").removesuffix("\n")
                if not raw.endswith(b"\n") or (not is_whole(text) and not file.peek(1)):
                    return
                start, end = end, end + len(raw)
                yield Line(text, f"{path} line {number}", start, end)
    except OSError as error:
        raise RunFolderError(str(path), found=f"cannot be read ({error.strerror})", expected=expected) from error


def open_for_append(path: Path, *, size: int) -> int:
    """Open an existing file for appending and cut off all bytes after ``size``; return the file descriptor.

    Raises:
        RunFolderError: the file cannot be opened or cut.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            if os.fstat(descriptor).st_size != size:
                os.ftruncate(descriptor, size)
                os.fsync(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
    except OSError as error:
        raise cannot_write(path, error) from error
    return descriptor
