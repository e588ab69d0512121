"""A record survives its line, and a line that was touched does not pass."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unfuse.errors import RunFolderError
from unfuse.records import RECORD_STAGES, STAGES, SampleRecord, StageTime, from_line, to_line

MakeRecord = Callable[..., SampleRecord]

CLOCKS = ("host_ms", "device_ms", "start_ms", "device_start_ms")
ANY_TEXT = st.text(st.characters(), max_size=40)  # lone surrogates, separators and control characters among it
MS = st.floats(allow_nan=False, allow_infinity=False)
COUNT = st.none() | st.integers(min_value=0, max_value=2**63)
STAGE_TIMES = st.builds(
    StageTime, host_ms=MS, device_ms=st.none() | MS, start_ms=st.none() | MS, device_start_ms=st.none() | MS
)
SPAN_TIMES = st.builds(
    StageTime, host_ms=MS, device_ms=st.none() | MS, entries=st.lists(STAGE_TIMES, max_size=2).map(tuple)
)
RECORDS = st.builds(
    SampleRecord,
    sample_id=ANY_TEXT,
    status=st.sampled_from(["ok", "failed"]),
    warmup=st.booleans(),
    error=st.none() | ANY_TEXT,
    stages=st.dictionaries(st.sampled_from(RECORD_STAGES), STAGE_TIMES),
    spans=st.dictionaries(ANY_TEXT, SPAN_TIMES, max_size=3),
    staged_host_ms=st.none() | MS,
    e2e_host_ms=st.none() | MS,
    e2e_start_ms=st.none() | MS,
    question=st.none() | ANY_TEXT,
    media=st.none() | ANY_TEXT,
    media_sha256=st.none() | ANY_TEXT,
    num_events=COUNT,
    num_frames=COUNT,
    text_tokens=COUNT,
    media_tokens=COUNT,
    output_tokens=COUNT,
    reused_prefix_tokens=COUNT,
    token_ids=st.none() | st.lists(st.integers(0, 10**6), max_size=5).map(tuple),
    text=st.none() | ANY_TEXT,
    stop_reason=st.none() | st.sampled_from(["eos", "length"]),
    e2e_same_tokens=st.none() | st.booleans(),
    notes=st.lists(ANY_TEXT, max_size=3).map(tuple),
    disturbances=st.lists(ANY_TEXT, max_size=3).map(tuple),
)


def checked(fields: dict[str, object]) -> str:
    """A line with a right checksum and any fields."""
    body = json.dumps(fields)
    return f'{body[:-1]}, "line_crc32": {zlib.crc32(body.encode())}}}'


def fields_of(record: SampleRecord) -> dict[str, object]:
    fields: dict[str, object] = json.loads(to_line(record))
    del fields["line_crc32"]
    return fields


@given(RECORDS)
def test_round_trip(record: SampleRecord) -> None:
    line = to_line(record)
    assert from_line(line) == record
    assert line.isascii()
    assert line.splitlines() == [line]


def test_fields_are_the_documented_ones(make_record: MakeRecord) -> None:
    fields = json.loads(to_line(make_record()))
    stages = [f"{stage}_{clock}" for stage in RECORD_STAGES for clock in CLOCKS]
    assert list(fields) == [
        *("sample_id", "status", "error", "warmup"),
        *stages,
        *(
            "spans",
            "staged_host_ms",
            "e2e_host_ms",
            "e2e_start_ms",
            "question",
            "media",
            "media_sha256",
            "num_events",
            "num_frames",
        ),
        *(
            "text_tokens",
            "media_tokens",
            "frame_size",
            "pixels",
            "output_tokens",
            "reused_prefix_tokens",
            "draft_tokens",
            "accepted_tokens",
            "decode_passes",
            "accepted_by_pass",
            "drafting_ms",
            "answer_known",
            "token_ids",
            "text",
        ),
        *("stop_reason", "reference", "e2e_same_tokens", "notes", "disturbances", "line_crc32"),
    ]
    assert set(RECORD_STAGES) >= set(STAGES)
    assert fields["decode_host_ms"] == 928.2
    assert fields["load_device_ms"] is None
    assert fields["fused_generate_host_ms"] is None
    assert fields["encode_start_ms"] is None
    assert fields["spans"] == {
        "load.rasterise": {
            "host_ms": 3.0,
            "device_ms": None,
            "start_ms": None,
            "device_start_ms": None,
            "entries": [],
        }
    }


def test_a_line_of_an_older_minor_version_has_no_beginnings(make_record: MakeRecord) -> None:
    new = ("start_ms", "device_start_ms", "entries", "disturbances", "e2e_start_ms")
    old = {name: value for name, value in fields_of(make_record()).items() if not name.endswith(new)}
    old["spans"] = {"load.rasterise": {"host_ms": 3.0, "device_ms": None}}
    assert from_line(checked(old)) == make_record()


def test_checksum_is_of_the_line_without_it(make_record: MakeRecord) -> None:
    line = to_line(make_record())
    body, _, checksum = line.rpartition(', "line_crc32": ')
    assert zlib.crc32((body + "}").encode()) == int(checksum.removesuffix("}"))


@given(st.data())
def test_any_changed_character_is_found(data: st.DataObject) -> None:
    line = to_line(SampleRecord(sample_id="a", status="ok", text="a street", token_ids=(1, 2)))
    index = data.draw(st.integers(0, len(line) - 1))
    other = data.draw(st.characters(codec="utf-8").filter(lambda c: c != line[index]))
    with pytest.raises(RunFolderError):
        from_line(line[:index] + other + line[index + 1 :])


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda b: b.decode("latin-1")))
def test_anything_else_is_one_typed_error(text: str) -> None:
    with pytest.raises(RunFolderError):
        from_line(text)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_no_line_holds_nan(make_record: MakeRecord, value: float) -> None:
    with pytest.raises(RunFolderError, match="e2e_host_ms"):
        to_line(make_record(e2e_host_ms=value))


def test_numpy_scalars_are_numbers(make_record: MakeRecord) -> None:
    record = make_record(output_tokens=np.int64(3), e2e_host_ms=np.float32(2.5))
    assert from_line(to_line(record)) == make_record(output_tokens=3, e2e_host_ms=2.5)


def test_a_stage_of_no_schema_is_not_written(make_record: MakeRecord) -> None:
    with pytest.raises(RunFolderError, match="found warm, expected load"):
        to_line(make_record(stages={"warm": StageTime(host_ms=1.0)}))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"speed_ms": 1.0}, "speed_ms"),
        ({"stages": {}}, "stages"),
        ({"status": "maybe"}, "status"),
        ({"warmup": 1}, "warmup"),
        ({"sample_id": None}, "sample_id"),
        ({"output_tokens": 1.5}, "output_tokens"),
        ({"output_tokens": True}, "output_tokens"),
        ({"encode_host_ms": "fast"}, "encode"),
        ({"encode_host_ms": None}, "encode_host_ms"),
        ({"token_ids": [1, None]}, r"token_ids\[1\]"),
        ({"spans": {"load.x": 3}}, "load.x"),
        ({"spans": [1]}, "spans"),
    ],
)
def test_an_unfit_field_is_named(make_record: MakeRecord, change: dict[str, object], named: str) -> None:
    line = checked({**fields_of(make_record()), **change})
    with pytest.raises(RunFolderError, match=named) as caught:
        from_line(line, where="samples.jsonl line 7")
    assert str(caught.value).startswith("samples.jsonl line 7")


def test_a_missing_field_is_named(make_record: MakeRecord) -> None:
    fields = fields_of(make_record())
    del fields["status"]
    with pytest.raises(RunFolderError, match="'status'"):
        from_line(checked(fields))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "1" + "0" * 400])
def test_a_number_that_is_none_is_refused(make_record: MakeRecord, number: str) -> None:
    body = json.dumps(fields_of(make_record())).replace("1004.5", number)
    with pytest.raises(RunFolderError):
        from_line(f'{body[:-1]}, "line_crc32": {zlib.crc32(body.encode())}}}')


def test_deep_nesting_is_no_crash() -> None:
    body = '{"a": ' + "[" * 100_000 + "}"
    with pytest.raises(RunFolderError):
        from_line(f'{body[:-1]}, "line_crc32": {zlib.crc32(body.encode())}}}')


def test_a_newer_minor_version_may_have_more_fields(make_record: MakeRecord) -> None:
    line = checked({**fields_of(make_record()), "power_w": 300})
    assert from_line(line, ignore_unknown=True) == make_record()
