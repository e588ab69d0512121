"""``ask --store`` and ``unfuse store``: their output and refused input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from unfuse.cli import run
from unfuse.feature_store import FeatureStore

ASK = ["ask", "demo:3", "What moves?", "--device", "cpu", "--max-new-tokens", "4"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def answers(out):
    return [line for line in out.splitlines() if line.startswith("A: ")]


def test_the_second_ask_encodes_nothing(capsys):
    assert run([*ASK, "--store", "scenes"]) == 0
    first = capsys.readouterr().out
    assert "Scene encoded once in" in first
    assert "Stored in scenes." in first
    assert run([*ASK, "--store", "scenes"]) == 0
    second = capsys.readouterr().out
    assert "Scene found in the store in" in second
    assert "Kept" not in second
    assert answers(first) == answers(second)
    assert answers(first)
    assert run(["store", "info", "scenes"]) == 0
    out = capsys.readouterr().out
    assert "1 scene, 0.1 MB in scenes" in out
    assert "last used between" in out


def test_a_damaged_scene_is_found_replaced_and_reported(capsys):
    assert run([*ASK, "--store", "scenes"]) == 0
    ((path, _),) = FeatureStore("scenes").check()
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    capsys.readouterr()
    assert run(["store", "check", "scenes"]) == 1
    out = capsys.readouterr().out
    assert f"{path}: " in out
    assert "differ from their digest" in out
    assert "1 scene, 1 damaged" in out
    assert run([*ASK, "--store", "scenes"]) == 0
    assert "Its entry was damaged and is replaced. Stored in scenes." in capsys.readouterr().out
    assert run(["store", "check", "scenes"]) == 0
    assert "1 scene, 0 damaged" in capsys.readouterr().out
    assert run(["store", "clear", "scenes"]) == 0
    assert "1 scene, 0.1 MB removed from scenes" in capsys.readouterr().out
    assert run(["store", "check", "scenes"]) == 0
    assert "0 scenes, 0 damaged" in capsys.readouterr().out


def test_a_scene_that_cannot_be_stored_is_reported_and_answered(capsys):
    assert run([*ASK, "--store", "scenes", "--store-gib", "0.00001"]) == 0
    out = capsys.readouterr().out
    assert "Not stored: scenes: " in out
    assert "more than the store's bound" in out
    assert answers(out)


def test_files_of_a_killed_process_are_listed(capsys):
    FeatureStore("scenes")
    (Path("scenes") / "tmp").mkdir()
    (Path("scenes") / "tmp" / "1.a").write_bytes(bytes(200_000))
    assert run(["store", "info", "scenes"]) == 0
    assert "0.2 MB being written, or left by a process that was killed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*ASK, "--store", "file"], ["file", "a folder for encoded scenes"]),
        ([*ASK, "--store", "other"], ["other", "something else in it"]),
        ([*ASK, "--store-gib", "3"], ["no --store"]),
        ([*ASK, "--store", "scenes", "--store-gib", "0"], ["--store-gib", "more than 0"]),
        ([*ASK, "--store", "scenes", "--store-gib", "nan"], ["--store-gib", "more than 0"]),
        (["store", "info", "none"], ["none", "No such file"]),
        (["store", "check", "file"], ["file", "folder of encoded scenes"]),
        (["store", "clear", "other"], ["other", "something else in it"]),
    ],
)
def test_refusals(arguments, words, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.count("\n") == 1
    assert all(word in captured.err for word in words), captured.err
    assert (tmp_path / "other" / "thesis.tex").exists()


def test_bench_has_no_store(capsys):
    assert run(["bench", "demo", "--store", "scenes"]) == 2
    assert "--store" in capsys.readouterr().err


def test_looking_into_a_store_loads_no_torch(tmp_path):
    FeatureStore("scenes")
    code = (
        "import sys\nfrom unfuse.cli import run\nfor verb in ('info', 'clear'):\n"
        "    assert run(['store', verb, sys.argv[1]]) == 0\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "scenes")], check=True, cwd=Path(__file__).parents[2])
