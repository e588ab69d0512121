"""Answers on the disk: in groups, whole or torn, and on a full disk."""

from __future__ import annotations

import errno
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from tests.started import PATIENCE_S, wait_for
from unfuse.errors import RunFolderError
from unfuse.records.answers_file import (
    AnswerRecord,
    AnswersWriter,
    SoundAnswers,
    read_answers,
    remove_failed,
    sound_answers,
)
from unfuse.records.inputs import RecordedInput

LINES = st.lists(st.text(max_size=30), min_size=1, max_size=8)


def record(name, text="a street", **more):
    fields = {"status": "ok", "question": "What moves?", "text": text, "token_ids": (5, 6, 2), "output_tokens": 3}
    return AnswerRecord(sample_id=str(name), **{**fields, **more})


@pytest.fixture
def path(tmp_path):
    (tmp_path / "answers.jsonl").touch()
    return tmp_path / "answers.jsonl"


def written(path, records, sound=0):
    writer = AnswersWriter(path, sound_bytes=sound)
    for each in records:
        writer.append(each)
    writer.close()
    return writer


def test_what_is_written_is_read(path):
    records = [
        record(0),
        record(1, "\u2028 \ud800 \n end", media_sha256="7" * 64),
        record(2, None, status="failed", error="no", token_ids=None),
    ]
    writer = written(path, records)
    assert list(read_answers(path)) == records
    begins = sum(len(line) for line in path.read_bytes().splitlines(keepends=True)[:2])
    answered = {
        each.sample_id: RecordedInput(question=each.question, media_sha256=each.media_sha256) for each in records[:2]
    }
    assert sound_answers(path) == SoundAnswers(answered, {"2": begins}, path.stat().st_size)
    assert path.read_bytes().isascii()
    assert writer.busy_s > 0


@examples(50)
@given(LINES, st.integers(0, 400))
def test_a_torn_tail_is_skipped_and_truncated(tmp_path_factory, texts, num_lost):
    path = tmp_path_factory.mktemp("torn") / "answers.jsonl"
    path.touch()
    written(path, [record(i, text) for i, text in enumerate(texts)])
    whole = path.read_bytes()
    torn = whole[: max(0, len(whole) - num_lost)]
    path.write_bytes(torn)
    found = sound_answers(path)
    done = [str(i) for i in range(torn.count(b"\n"))]
    assert list(found.answered) == done
    assert done == [each.sample_id for each in read_answers(path)]
    written(path, [record(i, text) for i, text in enumerate(texts) if str(i) not in done], found.num_bytes)
    assert path.read_bytes() == whole


def test_damage_before_the_end_is_an_error(path):
    written(path, [record(i) for i in range(3)])
    path.write_bytes(path.read_bytes().replace(b"street", b"strect", 1))
    with pytest.raises(RunFolderError, match="line 1: found a damaged line"):
        list(read_answers(path))


@examples(50)
@given(st.lists(st.booleans(), max_size=8), st.integers(0, 100))
def test_failures_are_removed_and_answers_stay(tmp_path_factory, ok, num_lost):
    path = tmp_path_factory.mktemp("failed") / "answers.jsonl"
    path.touch()
    records = [record(i) if good else record(i, None, status="failed", error="no") for i, good in enumerate(ok)]
    written(path, records)
    path.write_bytes(path.read_bytes()[: max(0, path.stat().st_size - num_lost)])
    whole = list(read_answers(path))
    found = sound_answers(path)
    assert found.answered.keys() | found.failed.keys() == {each.sample_id for each in whole}
    written(path, [], remove_failed(path, found))
    assert list(read_answers(path)) == [each for each in whole if each.status == "ok"]
    assert sound_answers(path) == SoundAnswers(found.answered, {}, path.stat().st_size)
    assert [each.name for each in path.parent.iterdir()] == ["answers.jsonl"]


def test_a_full_disk_removes_nothing(path, monkeypatch):
    written(path, [record(0), record(1, None, status="failed", error="no")])
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match="No space left"):
        remove_failed(path, sound_answers(path))
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["answers.jsonl"]


def test_an_id_twice_is_an_error(path):
    written(path, [record(0), record(0)])
    with pytest.raises(RunFolderError, match="one line per sample"):
        sound_answers(path)


def test_an_answer_counts_once_it_is_on_the_disk(path):
    safe, lines = [], []

    def on_safe(answer):
        safe.append(answer.sample_id)
        lines.append(path.read_bytes().count(b"\n"))

    writer = AnswersWriter(path, sound_bytes=0, on_safe=on_safe)
    writer.append(record(0))
    wait_for(lambda: safe)  # it does not wait for others for ever
    assert safe == ["0"]
    for i in range(1, 100):
        writer.append(record(i))
    writer.close()
    assert safe == [str(i) for i in range(100)]
    assert all(on_disk > number for number, on_disk in enumerate(lines))


def test_answers_that_come_together_are_made_durable_together(path, monkeypatch):
    """While the disk is busy with the first, all others come; they are then written in two turns at most."""
    from unfuse.records import answers_file

    monkeypatch.setattr(answers_file, "COMMIT_SECONDS", 0.0)
    gate, calls, sync = threading.Event(), [], os.fsync

    def fsync(descriptor):
        calls.append(descriptor)
        assert gate.wait(PATIENCE_S)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    writer = AnswersWriter(path, sound_bytes=0)
    writer.append(record(0))
    wait_for(lambda: calls)
    for i in range(1, answers_file._MAX_PENDING):
        writer.append(record(i))
    gate.set()
    writer.close()
    assert 2 <= len(calls) <= 3
    assert len(list(read_answers(path))) == answers_file._MAX_PENDING


def test_answers_wait_for_others_within_the_window(path, monkeypatch):
    """A window that does not end by itself is closed by the writer's end: one turn for all of its answers."""
    from unfuse.records import answers_file

    calls, sync = [], os.fsync
    monkeypatch.setattr(answers_file, "COMMIT_SECONDS", PATIENCE_S)
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append(descriptor) or sync(descriptor))
    written(path, [record(i) for i in range(1000)])
    assert len(calls) == 1
    assert len(list(read_answers(path))) == 1000


def test_a_full_disk_is_raised_to_the_writer(path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    writer = AnswersWriter(path, sound_bytes=0)
    writer.append(record(0))
    writer._thread.join()
    with pytest.raises(RunFolderError, match="No space left"):
        writer.append(record(1))
    with pytest.raises(RunFolderError, match="No space left"):
        writer.close()


@pytest.mark.parametrize("kind", [ValueError, BrokenPipeError, SystemExit])
def test_a_failing_listener_ends_the_run_and_no_answer_is_lost_in_silence(path, kind):
    def on_safe(answer):
        raise kind("whoever listens")

    writer = AnswersWriter(path, sound_bytes=0, on_safe=on_safe)
    writer.append(record(0))
    writer._thread.join(PATIENCE_S)
    with pytest.raises(kind, match="whoever listens"):
        writer.append(record(1))
    with pytest.raises(kind, match="whoever listens"):
        writer.close()
    assert [each.sample_id for each in read_answers(path)] == ["0"]


def test_a_slow_disk_makes_who_answers_wait(path, monkeypatch):
    from unfuse.records import answers_file

    monkeypatch.setattr(answers_file, "_MAX_PENDING", 4)
    gate = threading.Event()
    monkeypatch.setattr(os, "fsync", lambda fd: gate.wait(PATIENCE_S))
    writer = AnswersWriter(path, sound_bytes=0)
    handed = []

    def hand():
        for i in range(200):
            writer.append(record(i))
            handed.append(i)

    thread = threading.Thread(target=hand)
    thread.start()
    wait_for(lambda: writer._pending.full() or len(handed) == 200)
    before = len(handed)
    gate.set()
    thread.join()
    writer.close()
    assert before < 200
    assert len(list(read_answers(path))) == 200
