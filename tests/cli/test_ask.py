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
