"""``unfuse export``: a table on the disk, or one line of an error."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from unfuse.cli import run
from unfuse.records import Manifest, RunFolder, SampleRecord


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manifest = Manifest(
        run_id="r", created="2026-01-23T00:00:00+00:00", command=(), protocol="fused", config={}, model={}, dataset={},
        environment={},
    )  # fmt: skip
    with RunFolder.create("run", manifest) as made:
        made.append(SampleRecord(sample_id="a", status="ok", text="=cmd()", token_ids=(1, 2)))
    return Path("run")


def test_a_table(folder, capsys):
    assert run(["export", "run", "--output", "samples.csv"]) == 0
    assert capsys.readouterr().out.startswith("samples.csv: 1 rows of 1 runs, ")
    with Path("samples.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["run_id"], row["text"], row["token_ids"], row["warmup"]) == ("r", "=cmd()", "[1, 2]", "false")
    assert run(["export", "run", "--output", "samples.csv"]) == 2
    assert run(["export", "run", "--output", "samples.csv", "--replace"]) == 0
    assert run(["export", "run", "--output", "samples.parquet"]) == 0
    assert Path("samples.parquet").read_bytes()[:4] == b"PAR1"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no run"),
        (["run"], "no --output"),
        (["run", "--output", "samples.xls"], "'.xls', expected .csv or .parquet"),
        (["none", "--output", "samples.csv"], "no run.json"),
        (["run", "run", "--output", "samples.csv"], "it twice"),
    ],
)
def test_bad_arguments(folder, capsys, arguments, words):
    assert run(["export", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert [p.name for p in Path().iterdir()] == ["run"], "nothing is left"


@pytest.mark.parametrize("version", ["0.3", "2.0"])
@pytest.mark.parametrize(
    "verb", [["export", "run", "--output", "x.csv"], ["bench", "demo", "--resume", "--output", "run"]]
)
def test_another_schema_is_refused_by_name(folder, capsys, version, verb):
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": version}))
    assert run(verb) == 2
    error = capsys.readouterr().err
    assert f"schema_version: found '{version}', expected 1.x. Read it with the version of unfuse that wrote it" in error
    assert error.count("\n") == 1
