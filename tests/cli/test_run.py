"""``unfuse run`` as a user meets it."""

from __future__ import annotations

import json
import re
import shlex
import signal
from pathlib import Path

import pytest

from tests import started
from unfuse.cli import run
from unfuse.records.answers_file import read_answers

QUICK = ["--max-new-tokens", "4", "--workers", "0", "--device", "cpu"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_demo_by_default(capsys):
    assert run(["run", "--max-samples", "2", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "No model given: using the built-in demo model." in out
    assert "Samples: 2 ok, 0 failed." in out
    assert re.search(r"2 answers and \d+ tokens in [\d.]+ s: [\d.]+ samples/s, \d+ tokens/s, files to answers", out)
    assert len(re.findall(r"^Bottleneck: .+\(.+ busy \d+% of the time; .+\)$", out, re.MULTILINE)) == 1
    (folder,) = Path("runs").iterdir()
    assert folder.name.endswith("-demo-answers")
    assert len(list(read_answers(folder / "answers.jsonl"))) == 2
    assert json.loads((folder / "summary.json").read_text())["ok"] == 2


def test_a_file_of_questions_and_resume(capsys):
    Path("q.txt").write_text("What moves?\n\n  Is it raining?  \n")
    given = ["run", "demo", "--max-samples", "2", "--questions", "q.txt", "--output", "out", *QUICK]
    assert run(given) == 0
    answers = {each.sample_id: each.question for each in read_answers(Path("out/answers.jsonl"))}
    assert answers == {f"demo:{i}#{n}": q for i in range(2) for n, q in ((1, "What moves?"), (2, "Is it raining?"))}
    capsys.readouterr()
    assert run(given) == 2
    assert "--resume" in capsys.readouterr().err
    assert run([*given, "--resume"]) == 0
    assert "Samples: 4 ok, 0 failed, 4 of them answered before." in capsys.readouterr().out


def test_a_failed_sample_is_shown_and_is_exit_code_1(tmp_path, capsys):
    from unfuse.samples.dataset import MANIFEST_NAME

    (tmp_path / "data" / "event_npy").mkdir(parents=True)
    (tmp_path / "data" / "event_npy" / "a.npy").write_bytes(b"no events")
    (tmp_path / "data" / MANIFEST_NAME).write_text(json.dumps([{"id": "bad", "event_data": "a.npy"}]))
    assert run(["run", "demo", "--dataset", "data", *QUICK]) == 1
    out = capsys.readouterr().out
    assert re.search(r"Failed: bad: .*a\.npy", out)
    assert "Samples: 0 ok, 1 failed." in out


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["nonsense"], "no such folder"),
        (["--device", "gpu"], "auto, cpu"),
        (["--questions", "none.txt"], "none.txt"),
        (["--questions", "empty.txt"], "one question per line"),
        (["--dataset", "nowhere"], "no such folder"),
        (["--capacity", "0"], "at least 1"),
        (["--resume"], "no output"),
        (["--max-samples", "0"], "at least 1"),
        (["--temperature", "-1"], "temperature"),
    ],
)
def test_what_is_wrong_is_one_line(given, expected, capsys):
    Path("empty.txt").write_text("\n")
    assert run(["run", *given]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_by_the_user(number, code, tmp_path):
    out, questions = tmp_path / "out folder", tmp_path / "q.txt"
    # The process is stopped in the middle of writing answers, so the signal comes before the last.
    questions.write_text("".join(f"What moves, and how, in scene {n}?\n" for n in range(12)))
    given = ["run", "demo", "--questions", str(questions), "--output", str(out), "--capacity", "1"]
    given += ["--max-samples", "2", "--workers", "0", "--device", "cpu"]
    answers = out / "answers.jsonl"
    process = started.unfuse(*given, folder=tmp_path, hold=("unfuse.engines.sequential:SequentialBatch._next", 100))
    assert process.wait_until(lambda: answers.exists() and answers.stat().st_size), process.errors
    process.send(number)
    assert process.wait() == code
    assert "Traceback" not in process.errors
    output = process.out
    command = re.search(r"^Go on with: (.+)$", output, re.MULTILINE)[1]
    words = shlex.split(command)
    assert words[:3] == ["unfuse", "run", "demo"]
    assert words[words.index("--output") + 1] == str(out)
    assert "--resume" in words
    assert {"--capacity", "1"} <= set(words)
    stored = [each.sample_id for each in read_answers(answers)]
    assert 0 < len(stored) < 24
    assert f"Stopped. {len(stored)} answers of this process are kept in {out}." in output
    if code == 130:
        assert run(words[1:]) == 0
        assert [each.sample_id for each in read_answers(answers)][: len(stored)] == stored
        assert len(list(read_answers(answers))) == 24
