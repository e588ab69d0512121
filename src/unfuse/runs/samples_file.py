"""``samples.jsonl``: appended one durable line per sample, read back as far as it is sound.

A line counts as reported once ``append`` has returned: it is then on the disk. A process that is killed can
leave one unreported line behind, cut short; that torn tail is passed over in reading and cut off before more
is appended. A damaged line anywhere else is an error, for it was reported once.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unfuse.errors import RunFolderError
from unfuse.runs.atomic import cannot_write
from unfuse.runs.lines import from_line, is_whole, to_line
from unfuse.runs.schema import SampleRecord

SAMPLES_FILE: Final = "samples.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplesRead:
    """What a samples file holds."""

    records: tuple[SampleRecord, ...]
    """Warm-ups and failures among them, in the order they were appended."""
    sound_bytes: int
    """Length of the file up to the end of its last whole line."""
    torn_bytes: int
    """What follows it: an unreported line, cut short."""


def read_samples(path: Path, *, ignore_unknown: bool = False) -> SamplesRead:
    """Reads every whole line.

    Args:
        path: the file.
        ignore_unknown: pass over fields of a newer minor version of the schema.

    Raises:
        RunFolderError: the file cannot be read, a line before the last is damaged, or a line is of another
            schema; the message has the line's number.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunFolderError(
            str(path), found=f"cannot be read ({error.strerror})", expected="a run's samples"
        ) from error
    *lines, rest = data.split(b"\n")
    records: list[SampleRecord] = []
    sound_bytes = 0
    for number, raw in enumerate(lines, start=1):
        line = raw.decode("utf-8", "replace")
        if number == len(lines) and not rest and not is_whole(line):
            break
        records.append(from_line(line, where=f"{path} line {number}", ignore_unknown=ignore_unknown))
        sound_bytes += len(raw) + 1
    return SamplesRead(records=tuple(records), sound_bytes=sound_bytes, torn_bytes=len(data) - sound_bytes)


class SamplesWriter:
    """Appends to a samples file. One writer at a time: the caller holds the folder's lock."""

    def __init__(self, path: Path, *, sound_bytes: int):
        """Opens the file, which must exist, and cuts off what follows ``sound_bytes``.

        Raises:
            RunFolderError: the file cannot be opened or cut.
        """
        self._path = path
        self._size = sound_bytes
        self._descriptor: int | None = None
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
            if os.fstat(self._descriptor).st_size != sound_bytes:
                os.ftruncate(self._descriptor, sound_bytes)
                os.fsync(self._descriptor)
        except OSError as error:
            self.close()
            raise cannot_write(path, error) from error

    def append(self, record: SampleRecord) -> None:
        """Adds one line and returns when it is on the disk.

        After a failure the file ends with its last reported line again and the writer is closed.

        Raises:
            RunFolderError: the record has no JSON form, the disk refused, or the writer is closed.
        """
        data = to_line(record).encode("ascii") + b"\n"
        if self._descriptor is None:
            raise RunFolderError(
                str(self._path),
                found="a closed file",
                expected="one open for appending",
                fix="resume the run",
            )
        try:
            written = os.write(self._descriptor, data)
            if written != len(data):
                raise OSError(None, f"{written} of {len(data)} bytes written")
            os.fsync(self._descriptor)
        except OSError as error:
            # What is left where even this fails is a torn tail, which reading passes over.
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            self.close()
            raise cannot_write(self._path, error) from error
        self._size += len(data)

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
