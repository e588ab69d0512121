"""One sample record as one line of ``samples.jsonl``, and back.

A line is flat ASCII JSON. Each stage has its ``<stage>_host_ms`` and ``<stage>_device_ms``, and when both began
(``<stage>_start_ms``, ``<stage>_device_start_ms``), null where it was not measured. The last field,
``line_crc32``, is the CRC-32 of the line without that field, so a damaged line shows itself:

    crc32('{"sample_id": "a", ...}')  ->  '{"sample_id": "a", ..., "line_crc32": 123}'

The schema version of a line is that of the ``run.json`` beside it.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from typing import Any, Final

from unfuse.errors import RunFolderError
from unfuse.runs.plain import from_plain, parse_object, to_plain
from unfuse.runs.schema import RECORD_STAGES, SampleRecord

_CHECKSUM: Final = re.compile(r', "line_crc32": (\d{1,10})\}\Z')
BEFORE_STAGES: Final = ("sample_id", "status", "error", "warmup")
"""Fields before those of the stages."""
CLOCKS: Final = ("host_ms", "device_ms", "start_ms", "device_start_ms")
"""A stage's fields are named ``<stage>_<clock>``."""


def to_line(record: SampleRecord) -> str:
    """The record as one line, without a line end.

    Raises:
        RunFolderError: a number is NaN or infinite, or a stage is none of ours.
    """
    return sealed(to_flat(record))


def sealed(fields: Mapping[str, Any]) -> str:
    """Plain fields as one line that shows when it is damaged."""
    # ASCII only: an answer may hold lone surrogates and line separators, a line of the file must not.
    body = json.dumps(fields, allow_nan=False)
    return f'{body[:-1]}, "line_crc32": {zlib.crc32(body.encode("ascii"))}}}'


def unsealed(line: str, *, where: str) -> dict[str, Any]:
    """The fields of a line that ``sealed`` made.

    Raises:
        RunFolderError: it is damaged.
    """
    if not is_whole(line):
        raise RunFolderError(where, found="a damaged line (its checksum does not fit)", expected="a whole record")
    fields = parse_object(line, where=where)
    del fields["line_crc32"]
    return fields


def to_flat(record: SampleRecord) -> dict[str, Any]:
    """The fields of a record's line, in order, plain JSON; without the checksum.

    Raises:
        RunFolderError: a number is NaN or infinite, or a stage is none of ours.
    """
    where = f"record of sample {record.sample_id!r}"
    if unknown := sorted(record.stages.keys() - set(RECORD_STAGES)):
        raise RunFolderError(f"{where}: stage", found=unknown[0], expected=", ".join(RECORD_STAGES))
    plain = to_plain(record, where=where)
    stages = plain.pop("stages")
    flat = {name: plain.pop(name) for name in BEFORE_STAGES}
    for stage in RECORD_STAGES:
        for clock in CLOCKS:
            flat[f"{stage}_{clock}"] = stages.get(stage, {}).get(clock)
    return {**flat, **plain}


def is_whole(line: str) -> bool:
    """Whether the line's checksum is there and right."""
    match = _CHECKSUM.search(line)
    if match is None:
        return False
    body = line[: match.start()] + "}"
    return zlib.crc32(body.encode("utf-8", "surrogatepass")) == int(match[1])


def from_line(line: str, *, where: str = "record", ignore_unknown: bool = False) -> SampleRecord:
    """The record that ``to_line`` wrote.

    Args:
        line: without its line end.
        where: names the line in an error.
        ignore_unknown: pass over fields of a newer minor version of the schema.

    Raises:
        RunFolderError: the line is damaged, or a field is unknown, missing or of another type.
    """
    flat = unsealed(line, where=where)
    if "stages" in flat:
        raise RunFolderError(f"{where}: field 'stages'", found="a field of an unknown schema", expected="none such")
    stages = {}
    for stage in RECORD_STAGES:
        times = {clock: flat.pop(f"{stage}_{clock}", None) for clock in CLOCKS}
        if times["host_ms"] is not None:
            stages[stage] = times
        elif any(time is not None for time in times.values()):
            raise RunFolderError(f"{where}: {stage}_host_ms", found="null beside another time", expected="a number")
    return from_plain(SampleRecord, {**flat, "stages": stages}, where=where, ignore_unknown=ignore_unknown)
