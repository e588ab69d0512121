"""Exit codes of wrong calls, and the one line that each of them says, as earlier versions had them."""

from __future__ import annotations

import pytest

from unfuse.cli import run

WRONG = {
    "no such command": ["psychic"],
    "no such option": ["bench", "--psychic"],
    "no such data set": ["bench", "demo", "--dataset", "nowhere"],
    "no such checkpoint": ["bench", "nowhere/at/all"],
    "no such device": ["bench", "demo", "--device", "psychic"],
    "no such dtype": ["bench", "demo", "--dtype", "int3"],
    "no such engine": ["bench", "demo", "--engine", "psychic"],
    "no such protocol": ["bench", "demo", "--protocol", "psychic"],
    "a model twice": ["bench", "demo", "demo"],
    "nothing to resume": ["bench", "demo", "--resume"],
    "no samples": ["bench", "demo", "--max-samples", "0"],
    "negative repeats": ["bench", "demo", "--num-warmups", "-1"],
    "a temperature below 0": ["ask", "demo:0", "What moves?", "--temperature", "-1"],
    "no such recording": ["ask", "nowhere.npy", "What moves?"],
    "no such questions": ["run", "demo", "--questions", "nowhere.txt"],
    "no workers": ["run", "demo", "--workers", "-1"],
    "a device twice given": ["run", "demo", "--device", "cpu", "--devices", "cpu"],
    "a port too high": ["serve", "demo", "--port", "99999"],
    "no such run": ["report", "nowhere"],
    "no such runs": ["compare", "nowhere", "elsewhere"],
    "nothing to export": ["export", "nowhere", "out.parquet"],
    "no such store": ["store", "info", "nowhere"],
    "no such golden set": ["verify", "demo", "--golden", "nowhere"],
}


@pytest.mark.parametrize("arguments", WRONG.values(), ids=WRONG)
def test_what_is_wrong_in_a_call_is_exit_code_2_and_one_line(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    lines = [line for line in captured.err.splitlines() if line.startswith(("error: ", "Error: "))]
    assert len(lines) == 1, captured.err
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["bench", "--help"], ["run", "--help"]])
def test_help_is_exit_code_0(arguments, capsys):
    assert run(arguments) == 0
    assert capsys.readouterr().out.strip()
