"""``unfuse ask`` as a user meets it."""

from __future__ import annotations

import re

import pytest

from tests.cli.commands import one_line
from unfuse.cli import run


def test_ask(capsys):
    assert run(["ask", "--max-new-tokens", "3", "--device", "cpu", "demo:1", "What moves?", "Where to?"]) == 0
    out = capsys.readouterr().out
    assert out.count("Scene encoded once") == 1
    reused = [int(n) for n in re.findall(r"(\d+) of \d+ prompt positions reused", out)]
    assert reused[0] == 0
    assert reused[1] > 70


def test_a_second_run_drafts_from_the_history_of_the_first(tmp_path, capsys):
    command = ["ask", "--max-new-tokens", "20", "--device", "cpu", "--history", str(tmp_path / "answers")]
    command += ["--speculate", "history", "demo:1", "What moves?"]
    texts, passes = [], []
    for _ in range(2):
        assert run(command) == 0
        out = capsys.readouterr().out
        texts += re.findall("^A: (.*)$", out, re.MULTILINE)
        passes += [int(count) for count in re.findall(r"; (\d+) passes, \d+ of \d+ drafted tokens accepted", out)]
    assert texts[0] == texts[1]
    assert passes[1] < passes[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--speculate", "magic"], ["speculate", "'magic'", "history"]),
        (["--draft-tokens", "99"], ["draft-tokens", "99", "1 to 15"]),
        (["--draft-tokens", "x"], ["draft-tokens", "'x'"]),
        (["--speculate", "off", "--history", "f"], ["history", "speculate off"]),
    ],
)
def test_wrong_options_of_speculation(options, words, capsys):
    assert run(["ask", *options, "demo:1"]) == 2
    one_line(capsys, words)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("film.mp4", ["a picture or a video", "events", "the only input of demo", "--model"]),
        ("frames", ["a folder", "events"]),
        ("nowhere.mp4", ["no such file"]),
    ],
)
def test_ask_an_events_model_about_something_else(name, words, tmp_path, capsys):
    (tmp_path / "film.mp4").write_bytes(b"film")
    (tmp_path / "frames").mkdir()
    assert run(["ask", str(tmp_path / name), "What moves?"]) == 2
    one_line(capsys, [name, *words])
