import json
import os
import stat

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from tests.examples import examples
from unfuse.errors import FileAccessError, InputError
from unfuse.speculation.history import History
from unfuse.speculation.history_file import read_history, write_history

V, END = 100, 2
MODEL = "ab" * 32
ANSWERS = [[5, 6, 7, END], [8], [5, 6, 9, END]]


def history_of(answers=()):
    history = History(V, [END])
    for answer in answers:
        history.learn(answer)
    return history


def read(path, model=MODEL):
    history = history_of()
    read_history(path, history, model)
    return [answer.tolist() for answer in history.answers]


@pytest.fixture
def path(tmp_path):
    write_history(tmp_path / "history", history_of(ANSWERS), MODEL)
    return tmp_path / "history"


def test_answers_are_read_in_their_order(path):
    assert read(path) == ANSWERS
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_does_not_exist_has_no_answers(tmp_path):
    assert read(tmp_path / "history") == []
    write_history(tmp_path / "history", history_of(), MODEL)
    assert read(tmp_path / "history") == []


def test_the_history_of_another_model_is_refused(path):
    with pytest.raises(InputError, match=r"history of model abab.*expected that of cdcd.*Name another file"):
        read(path, "cd" * 32)


@examples(60)
@given(st.data())
def test_a_damaged_file_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("history") / "history"
    write_history(path, history_of(ANSWERS), MODEL)
    whole = path.read_bytes()
    kind = data.draw(st.sampled_from(["cut", "flip", "more"]))
    at = data.draw(st.integers(0, len(whole) - 1))
    if kind == "cut":
        damaged = whole[:at]
    elif kind == "flip":
        damaged = bytes([*whole[:at], whole[at] ^ 1 << data.draw(st.integers(0, 7)), *whole[at + 1 :]])
    else:
        damaged = whole + b"\0"
    path.write_bytes(damaged)
    try:
        found = read(path)
    except InputError:
        return
    assert found == ANSWERS  # a flip of white space


@pytest.mark.parametrize(
    ("tokens", "lengths"),
    [
        (np.array([V]), np.array([1])),
        (np.array([-1]), np.array([1])),
        (np.array([5, 6]), np.array([1])),
        (np.array([5, 6]), np.array([3, -1])),
        (np.array([[5]]), np.array([1])),
    ],
)
def test_ids_and_lengths_that_cannot_be_are_refused(tmp_path, tokens, lengths, monkeypatch):
    monkeypatch.setattr("unfuse.speculation.history_file._checksum", lambda *_: "sum")
    texts = {"format": "unfuse.history/1", "fingerprint": MODEL, "sha256": "sum"}
    arrays = {"tokens": tokens.astype(np.int32), "lengths": lengths.astype(np.int32)}
    (tmp_path / "history").write_bytes(save(arrays, texts))
    with pytest.raises(InputError, match="damaged contents|outside the vocabulary"):
        read(tmp_path / "history")


def test_other_formats_are_refused(tmp_path):
    path = tmp_path / "history"
    path.write_bytes(save({"tokens": np.zeros(1, np.int32), "lengths": np.ones(1, np.int32)}, {"format": "x"}))
    with pytest.raises(InputError, match=r"found format x, expected unfuse\.history/1"):
        read(path)
    path.write_text(json.dumps([1, 2]))
    with pytest.raises(InputError, match="no history"):
        read(path)


def test_a_file_of_gigabytes_is_not_read(tmp_path):
    with (tmp_path / "history").open("wb") as file:
        file.truncate(1 << 32)
    with pytest.raises(InputError, match="4294967296 bytes"):
        read(tmp_path / "history")


def test_a_pipe_or_a_folder_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(InputError, match="found no regular file"):
            read(path)
    with pytest.raises(FileAccessError):
        write_history(tmp_path / "none" / "history", history_of(ANSWERS), MODEL)
