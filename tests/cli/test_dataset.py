"""``unfuse dataset`` as a user meets it."""

from __future__ import annotations

import json
import sys

import pytest

from tests.cli.commands import one_line
from unfuse.cli import run


def test_demo_data_set(tmp_path, capsys):
    """Made, benchmarked on events and judged by its reference answers."""
    out = tmp_path / "set"
    assert run(["dataset", "demo", str(out), "--count", "2", "--workers", "1"]) == 0
    assert run(["dataset", "demo", str(out), "--count", "2"]) == 0, "again"
    folder = tmp_path / "run"
    run(["bench", "--dataset", str(out), "--output", str(folder), "--balance-seconds", "0", "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "2 samples in" in printed
    assert "Answers: 2 of 2, 100.0 %" in printed
    assert "Answers against the reference answers" in (folder / "report.md").read_text()
    quality = json.loads((folder / "summary.json").read_text())["quality"]
    assert quality["exact"]["right"] == quality["answers"] == 2
    assert all(json.loads(line)["reference"] for line in (folder / "samples.jsonl").read_text().splitlines())


def test_a_demo_data_set_without_pyav_is_not_started(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    assert run(["dataset", "demo", str(tmp_path / "set")]) == 2
    one_line(capsys, ["PyAV is not installed", 'pip install "unfuse[video]"'])
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--count", "0"], ["count", "at least 1"]),
        (["--seed", "-1"], ["seed", "at least 0"]),
        (["--workers", "-1"], ["workers", "at least 0"]),
        (["--count", "1"], ["other files", "new folder"]),
    ],
)
def test_a_bad_demo_data_set(tmp_path, capsys, arguments, words):
    (tmp_path / "mine").write_text("")
    assert run(["dataset", "demo", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words)
    assert error.count("\n") == 1
