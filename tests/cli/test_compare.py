"""``unfuse compare`` on run folders: its output, and exit codes for builds."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from unfuse.cli import run
from unfuse.records import STAGES, Manifest, RunFolder, SampleRecord, StageTime


def write(path, decode_ms, *, samples=12, engine="eager", failed=0, ended=True, noise=None):
    """A run whose samples differ; with a random generator as ``noise``, whose repeats would differ by 1.5 % too."""
    spread = np.ones((samples, len(STAGES))) if noise is None else noise.lognormal(0, 0.015, (samples, len(STAGES)))
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
                    stages={
                        name: StageTime(host_ms=ms * by)
                        for (name, ms), by in zip(times.items(), spread[index], strict=True)
                    },
                    output_tokens=4,
                )
                if index < samples - failed
                else SampleRecord(sample_id=f"s{index}", status="failed", error="out of memory")
            )
        if ended:
            folder.write_summary({})
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


@pytest.mark.parametrize(("decode_ms", "code"), [(103, 1), (100, 0), (97, 0)])
def test_a_known_change_under_noise(tmp_path, decode_ms, code):
    noise = np.random.default_rng(4)
    before = write(tmp_path / "a", 100, samples=40, noise=noise)
    after = write(tmp_path / "b", decode_ms, samples=40, noise=noise)
    assert run(["compare", before, after, "--fail-on-regression", "1.5"]) == code


def test_what_is_faster_fails_nothing(runs):
    assert run(["compare", *reversed(runs), "--fail-on-regression", "0"]) == 0


def test_noise_threshold(runs, capsys):
    assert run(["compare", *runs, "--noise-threshold", "15", "--fail-on-regression", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if "slower" in line and not line.startswith("The ratio is B / A")]


def test_a_sample_that_fails_now_fails_the_build(runs, tmp_path, capsys):
    broken = write(tmp_path / "broken", 90, failed=1)
    assert run(["compare", runs[0], broken]) == 0, "no limit was given"
    assert run(["compare", runs[0], broken, "--fail-on-regression", "5"]) == 1
    assert "1 samples that A measured failed in B" in capsys.readouterr().err


def test_what_could_not_be_seen_fails_the_build(runs, tmp_path, capsys):
    """A gate that cannot fail would be worse than none."""
    few, unfinished = write(tmp_path / "few", 200, samples=5), write(tmp_path / "unfinished", 100, ended=False)
    assert run(["compare", runs[0], few]) == 0, "no limit was given"
    assert "not judged: 5 samples; a difference is shown by 6 at least" in capsys.readouterr().out
    assert run(["compare", runs[0], few, "--fail-on-regression", "5"]) == 1
    assert "NOT JUDGED: 5 samples; a difference is shown by 6 at least\n" in capsys.readouterr().err
    assert run(["compare", runs[0], unfinished, "--fail-on-regression", "5"]) == 1
    assert "NOT JUDGED: B has not ended\n" in capsys.readouterr().err
    assert run(["compare", unfinished, runs[0], "--fail-on-regression", "5"]) == 1
    assert "NOT JUDGED: A has not ended\n" in capsys.readouterr().err


def test_a_limit_within_the_noise_threshold_is_reported(runs, capsys):
    assert run(["compare", *reversed(runs), "--noise-threshold", "12", "--fail-on-regression", "5"]) == 0
    assert "Changes up to 12 % count as noise here, so 5 % cannot be judged." in capsys.readouterr().err
    assert run(["compare", *reversed(runs), "--fail-on-regression", "5"]) == 0
    assert "count as noise" not in capsys.readouterr().err


def test_a_comparison_names_its_runs(runs, tmp_path, capsys):
    (tmp_path / "comparison.json").write_text("{}")
    assert run(["compare", runs[0], str(tmp_path)]) == 2
    assert (
        "a comparison of several runs, expected a run. Name one of the folders in it: a, b" in capsys.readouterr().err
    )


def test_baselines(runs, tmp_path, monkeypatch, capsys):
    """Saved under a name below the working directory, listed, compared with, replaced on request."""
    monkeypatch.chdir(tmp_path)
    slow, fast = runs[1], runs[0]
    assert run(["compare", "--list-baselines"]) == 0
    assert "No baselines in .unfuse/baselines" in capsys.readouterr().err
    assert run(["compare", "--save-baseline", "main", fast]) == 0
    assert run(["compare", "--list-baselines"]) == 0
    assert capsys.readouterr().out == "main: demo, decoupled, 2026-01-23T00:00:00+00:00\n"
    Path(".unfuse/baselines/old").mkdir()
    Path(".unfuse/baselines/old/run.json").write_text('{"schema_version": "2.0"}')
    assert run(["compare", "--list-baselines"]) == 0
    assert "old: " in (listed := capsys.readouterr().out)
    assert "found '2.0'" in listed
    Path(".unfuse/baselines/old/run.json").unlink()
    Path(".unfuse/baselines/old").rmdir()
    saved = Path(".unfuse/baselines/main")
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == {
        p.name: p.read_bytes() for p in Path(fast).iterdir() if p.name != ".lock"
    }
    assert run(["compare", "--baseline", "main", slow, "--fail-on-regression", "5"]) == 1
    assert "A: baseline main (a, demo" in capsys.readouterr().out
    assert run(["compare", "--baseline", "main", fast, "--fail-on-regression", "5"]) == 0
    assert run(["compare", "--baseline", "mian", fast]) == 2
    assert "Did you mean main?" in capsys.readouterr().err
    assert run(["compare", "--save-baseline", "main", slow]) == 2
    assert "--replace" in capsys.readouterr().err
    regressed = ["compare", "--baseline", "main", slow, "--fail-on-regression", "5", "--save-baseline", "main"]
    assert run([*regressed, "--replace"]) == 1
    assert "Baseline main is not saved" in capsys.readouterr().err
    assert run(["compare", "--baseline", "main", slow, "--save-baseline", "main", "--replace"]) == 0
    assert run(["compare", "--baseline", "main", fast]) == 0
    assert "A: baseline main (b, demo" in capsys.readouterr().out
    assert os.listdir(".unfuse/baselines") == ["main"], "nothing left over"  # noqa: PTH208


def test_a_baseline_dir(runs, tmp_path, capsys):
    options = ["--baseline-dir", str(tmp_path / "saved")]
    assert run(["compare", "--save-baseline", "v1.0", runs[0], *options]) == 0
    assert (tmp_path / "saved" / "v1.0" / "run.json").is_file()
    assert run(["compare", "--baseline", "v1.0", runs[1], *options]) == 0


def test_a_run_that_did_not_end_is_no_baseline(tmp_path, capsys):
    unfinished = write(tmp_path / "unfinished", 100, ended=False)
    assert run(["compare", "--save-baseline", "x", unfinished, "--baseline-dir", str(tmp_path / "saved")]) == 2
    assert "--resume" in capsys.readouterr().err
    assert not (tmp_path / "saved").exists()


def test_json_and_markdown(runs, capsys):
    assert run(["compare", *runs, "--format", "json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert {stage["stage"]: stage["word"] for stage in value["stages"]}["decode"] == "slower"
    assert value["work"]["values"] == {"engine": ["eager", "graphed"]}
    assert (value["before"]["run_id"], value["after"]["run_id"]) == ("a", "b")
    assert run(["compare", *runs, "--format", "markdown"]) == 0
    assert "| decode |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "html"], "text, markdown, json"),
        (["--noise-threshold", "-1"], "no percentage"),
        (["--fail-on-regression", "much"], "no percentage"),
        (["--replace"], "no --save-baseline"),
        (["third"], "3 runs"),
        (["--baseline", "main"], "no baseline of that name"),
        (["--save-baseline", "../main"], "'../main'"),
    ],
)
def test_bad_arguments(runs, capsys, arguments, words):
    assert run(["compare", *runs, *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("version", ["0.3", "2.0"])
def test_another_schema_is_refused_by_name(runs, capsys, version):
    path = Path(runs[1]) / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": version}))
    assert run(["compare", *runs]) == 2
    error = capsys.readouterr().err
    assert f"{path}: schema_version: found '{version}', expected 1.x" in error
    assert error.count("\n") == 1


def test_no_run(runs, tmp_path, capsys):
    assert run(["compare", runs[0], str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.count("\n") == 1
