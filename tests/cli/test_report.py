"""``unfuse report``: the path of the page, its content, and refused input."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from unfuse.cli import run
from unfuse.records import read_manifest
from unfuse.records.verification_file import CheckResult, VerificationRecord, verification_path, write_verification

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folder(tmp_path):
    """A run of the first schema, without probes and pictures."""
    return shutil.copytree(BENCHMARKS / "h200-eventgpt-7b-eager", tmp_path / "run")


def test_one_run_has_it_in_its_folder(folder, capsys):
    assert run(["report", str(folder)]) == 0
    assert f"1 run, 1.0 MiB: {folder / 'report.html'}" in capsys.readouterr().out
    text = (folder / "report.html").read_text()
    for words in (
        "Work and ceilings not recorded",
        "Memory not recorded",
        "The run holds no pictures for",
        "Not verified",
    ):
        assert words in text
    assert run(["report", str(folder)]) == 0, "made again, it replaces the old one"


def test_several_runs_are_reported_here_or_at_output(folder, tmp_path, capsys):
    other = shutil.copytree(folder, tmp_path / "other")
    assert run(["report", str(folder), str(other)]) == 0
    text = (tmp_path / "report.html").read_text()
    assert "random:eventgpt-7b [run]" in text
    assert "random:eventgpt-7b [other]" in text
    assert run(["report", str(folder), str(other)]) == 2, "what lies there may be anything"
    assert "--output" in capsys.readouterr().err
    assert run(["report", str(folder), str(other), "--output", "both.html"]) == 0
    assert (tmp_path / "both.html").read_text() == text


def test_a_comparison(capsys):
    assert run(["report", str(BENCHMARKS / "h200-7b-comparison"), "--output", "all.html"]) == 0
    assert "12 runs" in capsys.readouterr().out
    text = Path("all.html").read_text()
    assert text.count("INVALID, as it must be") == 3, "the controls"
    assert "all 20 samples have 46 output tokens" in text
    assert "Differences in work between the models" in text
    assert text.count("unfuse bench random:eventgpt-7b random:video-llava-7b") == 1, "one command made them all"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing argument"),
        (["none"], "no run.json"),
        (["run", "run"], "run twice"),
        (["run", "run/../run"], "run/../run twice"),
        (["run", "--output", "no/where.html"], "no such folder"),
        (["run", "--output", "."], "directory"),
    ],
)
def test_refusals(folder, arguments, words, capsys):
    code = run(["report", *arguments])
    error = capsys.readouterr().err
    assert code == 2
    assert words in error
    assert len(error.splitlines()) == 1
    assert not (folder / "report.html").exists()


def rows_of(folder, **changes):
    """Rows of a verification as ``unfuse verify --output`` writes them, of the run's own weights."""
    model = read_manifest(folder).model
    record = VerificationRecord(
        created="2026-01-01T00:00:00+00:00",
        command=("unfuse", "verify"),
        model=model["name"],
        fingerprint=model["fingerprint"],
        device=model["device"],
        dtype=model["dtype"],
        engine=model["engine"],
        sample_id="a",
        rows=(
            CheckResult(name="backward-compatible", status="fail", expected="this", observed="that", tolerance="exact"),
        ),
    )
    write_verification(verification_path(folder), replace(record, **changes))


def test_verified_rows_are_shown_with_the_run_of_these_weights(folder):
    rows_of(folder)
    assert run(["report", str(folder)]) == 0
    text = (folder / "report.html").read_text()
    assert "Not verified" not in text
    assert "backward-compatible" in text


def test_rows_of_other_weights_are_not(folder):
    rows_of(folder, fingerprint="0" * 64)
    assert run(["report", str(folder)]) == 0
    text = (folder / "report.html").read_text()
    assert "the verification in this folder is of another fingerprint" in text
    assert "backward-compatible" not in text


def test_a_damaged_verification_is_an_error(folder, capsys):
    (folder / "verification.json").write_text("{")
    assert run(["report", str(folder)]) == 2
    assert "verification.json" in capsys.readouterr().err
