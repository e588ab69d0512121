"""``samples.jsonl``: one durable line per sample, appended, and read back as records.

A line is flat: each stage has its ``<stage>_host_ms`` and ``<stage>_device_ms``, and the starts of both
(``<stage>_start_ms``, ``<stage>_device_start_ms``), null if they were not measured. The schema version of a line is
that of the ``run.json`` beside it. A line counts as reported once ``append`` has returned: it is then on the disk.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from unfuse.errors import RunFolderError
from unfuse.records.atomic import cannot_write
from unfuse.records.conversion import from_plain, to_plain
from unfuse.records.lines import open_for_append, read_lines, sealed, unsealed
from unfuse.records.schema import RECORD_STAGES, SampleRecord

SAMPLES_FILE: Final = "samples.jsonl"
FIELDS_BEFORE_STAGES: Final = ("sample_id", "status", "error", "warmup")
"""Fields before the fields of the stages."""
CLOCKS: Final = ("host_ms", "device_ms", "start_ms", "device_start_ms")
"""A stage's fields are named ``<stage>_<clock>``."""


def to_line(record: SampleRecord) -> str:
    """Return the record as one line, without a line end.

    Raises:
        RunFolderError: a number is NaN or infinite, or the schema does not have the stage.
    """
    return sealed(to_flat(record))


def to_flat(record: SampleRecord) -> dict[str, Any]:
    """Return the plain fields of a record's line, in order, without the checksum.

    Raises:
        RunFolderError: a number is NaN or infinite, or the schema does not have the stage.
    """
    where = f"record of sample {record.sample_id!r}"
    if unknown := sorted(record.stages.keys() - set(RECORD_STAGES)):
        raise RunFolderError(f"{where}: stage", found=unknown[0], expected=", ".join(RECORD_STAGES))
    plain = to_plain(record, where=where)
    stages = plain.pop("stages")
    flat = {name: plain.pop(name) for name in FIELDS_BEFORE_STAGES}
    for stage in RECORD_STAGES:
        for clock in CLOCKS:
            flat[f"{stage}_{clock}"] = stages.get(stage, {}).get(clock)
    return {**flat, **plain}


def from_line(line: str, *, where: str = "record", ignore_unknown: bool = False) -> SampleRecord:
    """Return the record of a line that ``to_line`` made.

    Args:
        line: without its line end.
        where: name of the line in an error.
        ignore_unknown: skip fields of a newer minor version of the schema.

    Raises:
        RunFolderError: the line is damaged, or a field is unknown, missing or of another type.
    """
    flat = unsealed(line, where=where)
    if "stages" in flat:
        raise RunFolderError(
            f"{where}: field 'stages'", found="a field of an unknown schema", expected="only fields of the schema"
        )
    stages = {}
    for stage in RECORD_STAGES:
        times = {clock: flat.pop(f"{stage}_{clock}", None) for clock in CLOCKS}
        if times["host_ms"] is not None:
            stages[stage] = times
        elif any(time is not None for time in times.values()):
            raise RunFolderError(f"{where}: {stage}_host_ms", found="null beside another time", expected="a number")
    return from_plain(SampleRecord, {**flat, "stages": stages}, where=where, ignore_unknown=ignore_unknown)


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplesRead:
    """Content of a samples file."""

    records: tuple[SampleRecord, ...]
    """Every record in the order of appending, warm-ups and failures among them."""
    sound_bytes: int
    """Length of the file up to the end of its last whole line."""
    torn_bytes: int
    """Length of the rest: a torn, unreported line."""


def read_samples(path: Path, *, ignore_unknown: bool = False) -> SamplesRead:
    """Read every whole line.

    Args:
        path: the file.
        ignore_unknown: skip fields of a newer minor version of the schema.

    Raises:
        RunFolderError: the file cannot be read, a line before the last is damaged, or a line is of another
            schema; the message has the line's number.
    """
    records: list[SampleRecord] = []
    sound_bytes = 0
    size = path.stat().st_size if path.is_file() else 0  # before reading: a writer may append meanwhile
    for line in read_lines(path, expected="a run's samples"):
        records.append(from_line(line.text, where=line.where, ignore_unknown=ignore_unknown))
        sound_bytes = line.end
    return SamplesRead(records=tuple(records), sound_bytes=sound_bytes, torn_bytes=max(0, size - sound_bytes))


class SamplesWriter:
    """Appends to a samples file. One writer at a time: the caller holds the folder's lock."""

    def __init__(self, path: Path, *, sound_bytes: int):
        """Open an existing file, and cut off all bytes after ``sound_bytes``.

        Raises:
            RunFolderError: the file cannot be opened or cut.
        """
        self._path = path
        self._size = sound_bytes
        self._descriptor: int | None = open_for_append(path, size=sound_bytes)

    def append(self, record: SampleRecord) -> None:
        """Add one line and return when it is on the disk.

        After a failure the file ends with its last reported line again and the writer is closed.

        Raises:
            RunFolderError: the record has no JSON form, the disk refused, or the writer is closed.
        """
        data = to_line(record).encode("ascii") + b"\n"
        if self._descriptor is None:
            raise RunFolderError(
                str(self._path),
                found="a closed file",
                expected="a file that is open for appending",
                fix="resume the run",
            )
        try:
            written = os.write(self._descriptor, data)
            if written != len(data):
                raise OSError(None, f"{written} of {len(data)} bytes written")
            os.fsync(self._descriptor)
        except OSError as error:
            # If even this fails, the rest is a torn line, and readers skip it.
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            self.close()
            raise cannot_write(self._path, error) from error
        self._size += len(data)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
