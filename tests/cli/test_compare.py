"""``unfuse compare`` on run folders: what it prints, and exit codes that a build can rely on."""

from __future__ import annotations

import json

import pytest

from unfuse.cli import run
from unfuse.runs import STAGES, Manifest, RunFolder, SampleRecord, StageTime


def write(path, decode_ms, *, samples=12, engine="eager"):
    manifest = Manifest(
        run_id=path.name,
        created="2026-01-23T00:00:00+00:00",
        command=("unfuse", "bench"),
        protocol="decoupled",
        config={},
        model={"name": "demo", "engine": engine},
        dataset={},
        environment={"device_name": "a cpu"},
    )
    with RunFolder.create(path, manifest) as folder:
        for index in range(samples):
            times = dict.fromkeys(STAGES, 10.0 + index) | {"decode": decode_ms * (1 + index / 10)}
            folder.append(
                SampleRecord(
                    sample_id=f"s{index}",
                    status="ok",
                    stages={name: StageTime(host_ms=ms) for name, ms in times.items()},
                    output_tokens=4,
                )
            )
    return str(path)


@pytest.fixture
def runs(tmp_path):
    return write(tmp_path / "a", 100), write(tmp_path / "b", 110, engine="graphed")


def test_table_and_differences(runs, capsys):
    assert run(["compare", *runs]) == 0
    out = capsys.readouterr().out
    assert out.index("engine: eager (A), graphed (B)") < out.index("decode")
    (decode,) = (line for line in out.splitlines() if line.startswith("decode"))
    assert "1.100" in decode
    assert decode.rstrip().endswith("slower")
    (load,) = (line for line in out.splitlines() if line.startswith("load"))
    assert load.rstrip().endswith("no difference shown")


@pytest.mark.parametrize(("limit", "code"), [("5%", 1), ("9.9", 1), ("11", 0)])
def test_a_regression_fails_the_build(runs, capsys, limit, code):
    assert run(["compare", *runs, "--fail-on-regression", limit]) == code
    assert ("REGRESSION: decode is 10.0 % slower" in capsys.readouterr().err) == bool(code)


def test_what_is_faster_fails_nothing(runs):
    assert run(["compare", *reversed(runs), "--fail-on-regression", "0"]) == 0


def test_noise_threshold(runs, capsys):
    assert run(["compare", *runs, "--noise-threshold", "15", "--fail-on-regression", "0"]) == 0
    assert "slower" not in capsys.readouterr().out


def test_json_and_markdown(runs, capsys):
    assert run(["compare", *runs, "--format", "json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert {stage["stage"]: stage["word"] for stage in value["stages"]}["decode"] == "slower"
    assert run(["compare", *runs, "--format", "markdown"]) == 0
    assert "| decode |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "html"], "text, markdown, json"),
        (["--noise-threshold", "-1"], "no percentage"),
        (["--fail-on-regression", "much"], "no percentage"),
    ],
)
def test_bad_arguments(runs, capsys, arguments, words):
    assert run(["compare", *runs, *arguments]) == 2
    assert words in capsys.readouterr().err


def test_no_run(runs, tmp_path, capsys):
    assert run(["compare", runs[0], str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.count("\n") == 1
