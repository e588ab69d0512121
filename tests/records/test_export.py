"""An exported table holds the values of the records, to the last digit and character."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from tests.examples import examples
from unfuse.errors import InputError, MissingPackageError, RunFolderError
from unfuse.records import ComparisonFolder, Manifest, RunFolder, SampleRecord, StageTime
from unfuse.records.export import check_export, export, to_csv, to_parquet
from unfuse.records.samples_file import to_flat
from unfuse.records.schema import RECORD_STAGES
from unfuse.records.table import run_folders, sample_table

MakeManifest = Callable[..., Manifest]
MakeRecord = Callable[..., SampleRecord]

ANY_TEXT = st.text(st.characters(), max_size=20)  # quotes, line ends, NUL and lone surrogates among it
MS = st.floats(allow_nan=False, allow_infinity=False)
COUNT = st.none() | st.integers(0, 2**63 - 1)
TIMES = st.builds(StageTime, host_ms=MS, device_ms=st.none() | MS, start_ms=st.none() | MS)
SPANS = st.builds(
    StageTime, host_ms=MS, device_ms=st.none() | MS, start_ms=MS, entries=st.lists(TIMES, max_size=2).map(tuple)
)
RECORDS = st.builds(
    SampleRecord,
    sample_id=ANY_TEXT,
    status=st.sampled_from(["ok", "failed"]),
    warmup=st.just(True),  # else a second one of a name is refused
    error=st.none() | ANY_TEXT,
    stages=st.dictionaries(st.sampled_from(RECORD_STAGES), TIMES),
    spans=st.dictionaries(st.sampled_from(["load.read", "encode.tower", 'a "span", of\nours']), SPANS),
    e2e_host_ms=st.none() | MS,
    num_events=COUNT,
    frame_size=st.none() | st.tuples(st.integers(0, 9), st.integers(0, 9)),
    token_ids=st.none() | st.lists(st.integers(0, 10**6), max_size=4).map(tuple),
    text=st.none() | ANY_TEXT,
    e2e_same_tokens=st.none() | st.booleans(),
    notes=st.lists(ANY_TEXT, max_size=3).map(tuple),
)


SPAN = ("host_ms", "device_ms", "start_ms", "device_start_ms", "entries")


def write(path: Path, manifest: Manifest, records: list[SampleRecord]) -> Path:
    with RunFolder.create(path, manifest) as run:
        for record in records:
            run.append(record)
    return path


def utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def expected(record: SampleRecord) -> dict[str, Any]:
    """The line's fields under the columns' names."""
    flat = to_flat(record)
    spans = flat.pop("spans")
    flat |= {
        f"spans.{name}.{field}": json.dumps(value) if field == "entries" else value
        for name, times in spans.items()
        for field, value in times.items()
    }

    def whole(value: Any) -> Any:
        return (
            [whole(item) for item in value]
            if isinstance(value, list)
            else utf8(value)
            if isinstance(value, str)
            else value
        )

    return {name: whole(value) for name, value in flat.items()}


@pytest.fixture(scope="module")
def new_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    root = tmp_path_factory.mktemp("export")
    return lambda: root / str(len(list(root.iterdir())))


ROUND_TRIP = examples(40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@ROUND_TRIP
@given(records=st.lists(RECORDS, min_size=1, max_size=4))
def test_parquet_round_trip(
    new_path: Callable[[], Path], make_manifest: MakeManifest, records: list[SampleRecord]
) -> None:
    table = sample_table([write(new_path(), make_manifest(), records)])
    rows = pyarrow.parquet.read_table(io.BytesIO(to_parquet(table))).to_pylist()
    for row, record in zip(rows, records, strict=True):
        wanted = expected(record)
        assert {name: value for name, value in row.items() if name in wanted} == wanted
        assert not [n for n, value in row.items() if n.startswith("spans.") and n not in wanted and value is not None]


@ROUND_TRIP
@given(records=st.lists(RECORDS, min_size=1, max_size=4))
def test_csv_round_trip(new_path: Callable[[], Path], make_manifest: MakeManifest, records: list[SampleRecord]) -> None:
    """By Python's reader, and by one that tells null from an empty string."""
    table = sample_table([write(new_path(), make_manifest(), records)])
    data = to_csv(table)
    rows = list(csv.DictReader(io.StringIO(data.decode(), newline="")))
    typed = pyarrow.csv.read_csv(
        io.BytesIO(data),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(table.columns, pyarrow.string()),
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            null_values=[""],
        ),
    ).to_pylist()
    for row, other, record in zip(rows, typed, records, strict=True):
        for name, value in expected(record).items():
            assert (other[name] is None) == (value is None), name
            assert row[name] == (other[name] or "")
            if isinstance(value, str):
                assert row[name] == value
            elif value is not None:
                read = json.loads(row[name])
                assert read == to_flat(record).get(name, value), "lists are ASCII, so surrogates come back"
                assert type(read) is type(value)


def test_columns(tmp_path: Path, make_manifest: MakeManifest, make_record: MakeRecord) -> None:
    """Columns that identify the run, then a line's own fields in their order; typed."""
    table = sample_table([write(tmp_path / "run", make_manifest(), [make_record()])])
    names = list(table.columns)
    first = ["run_id", "created", "model", "model_fingerprint", "protocol", "engine", "dtype", "device", "device_name"]
    assert names[:9] == first
    line = json.loads((tmp_path / "run" / "samples.jsonl").read_text())
    del line["line_crc32"]
    wanted = [
        each
        for name in line
        for each in ([f"spans.load.rasterise.{field}" for field in SPAN] if name == "spans" else [name])
    ]
    assert names[9:] == wanted
    schema = pyarrow.parquet.read_schema(io.BytesIO(to_parquet(table)))
    kinds = {
        name: str(schema.field(name).type) for name in ("warmup", "num_events", "token_ids", "decode_host_ms", "text")
    }
    assert kinds == {
        "warmup": "bool",
        "num_events": "int64",
        "token_ids": "list<element: int64>",
        "decode_host_ms": "double",
        "text": "string",
    }
    assert schema.field("num_events").nullable
    (row,) = table.rows
    assert [row[name] for name in first[2:]] == ["demo", "f" * 64, "decoupled", "eager", "float32", "cpu", "a cpu"]


def test_several_runs(tmp_path: Path, make_manifest: MakeManifest, make_record: MakeRecord) -> None:
    """A comparison is its parts; spans of one run are null in another; nothing is left out."""
    parts = [("demo", "decoupled"), ("demo", "hooked"), ("x", "fused")]
    folder = ComparisonFolder.create(tmp_path / "both", parts, common={}, created="", command=())
    write(folder.run_folder(0), make_manifest(run_id="a"), [make_record("s", warmup=True), make_record("s")])
    write(
        folder.run_folder(1),
        make_manifest(run_id="b", protocol="hooked"),
        [make_record("s", spans={"x.y": StageTime(host_ms=1.0)})],
    )
    lone = write(
        tmp_path / "lone", make_manifest(run_id="c"), [SampleRecord(sample_id="s", status="failed", error="no")]
    )
    assert run_folders(folder.path) == (folder.run_folder(0), folder.run_folder(1))
    table = sample_table([folder.path, lone])
    assert table.num_runs == 3
    assert [(r["run_id"], r["status"], r["warmup"]) for r in table.rows] == [
        ("a", "ok", True), ("a", "ok", False), ("b", "ok", False), ("c", "failed", False),
    ]  # fmt: skip
    assert [r["spans.x.y.host_ms"] for r in table.rows] == [None, None, 1.0, None]
    assert [r["spans.load.rasterise.host_ms"] for r in table.rows] == [3.0, 3.0, None, None]
    assert [r["error"] for r in table.rows] == [None, None, None, "no"]


def test_a_run_without_samples(tmp_path: Path, make_manifest: MakeManifest) -> None:
    table = sample_table([write(tmp_path / "run", make_manifest(), [])])
    assert table.rows == ()
    assert {"run_id", "sample_id", "decode_host_ms", "token_ids"} < set(table.columns)
    assert pyarrow.parquet.read_table(io.BytesIO(to_parquet(table))).num_rows == 0
    assert to_csv(table).count(b"\n") == 1


def test_what_cannot_be_exported(tmp_path: Path, make_manifest: MakeManifest, make_record: MakeRecord) -> None:
    run = write(tmp_path / "run", make_manifest(), [make_record(num_events=2**63)])
    with pytest.raises(RunFolderError, match="it twice"):
        sample_table([run, tmp_path / "." / "run"])
    with pytest.raises(RunFolderError, match=r"no run\.json"):
        sample_table([tmp_path])
    ComparisonFolder.create(tmp_path / "none", [("demo", "fused")], common={}, created="", command=())
    with pytest.raises(RunFolderError, match="without a run"):
        sample_table([tmp_path / "none"])
    with pytest.raises(InputError, match="column num_events"):
        to_parquet(sample_table([run]))
    assert str(2**63).encode() in to_csv(sample_table([run]))


def test_without_pyarrow(tmp_path: Path, make_manifest: MakeManifest, monkeypatch: pytest.MonkeyPatch) -> None:
    table = sample_table([write(tmp_path / "run", make_manifest(), [])])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingPackageError, match=r"unfuse\[export\]"):
        to_parquet(table)
    assert to_csv(table)


def test_where_it_goes(tmp_path: Path, make_manifest: MakeManifest) -> None:
    table = sample_table([write(tmp_path / "run", make_manifest(), [])])
    check_export(tmp_path / "a.CSV")
    export(table, tmp_path / "a.CSV")
    assert (tmp_path / "a.CSV").read_bytes() == to_csv(table)
    with pytest.raises(RunFolderError, match="--replace"):
        check_export(tmp_path / "a.CSV")
    check_export(tmp_path / "a.CSV", replace=True)
    (tmp_path / "b.csv").mkdir()
    with pytest.raises(RunFolderError, match="found no file"):
        check_export(tmp_path / "b.csv", replace=True)
    for name in ("a.xlsx", "a", "csv"):
        with pytest.raises(InputError, match=r"\.csv or \.parquet"):
            check_export(tmp_path / name)
    with pytest.raises(RunFolderError, match="cannot be written"):
        export(table, tmp_path / "nowhere" / "a.csv")
