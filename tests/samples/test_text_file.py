"""Text files of any editor: marks, encodings, line ends; and lists of questions."""

from __future__ import annotations

import codecs

import pytest

from unfuse.errors import DatasetError, FileAccessError, PromptError
from unfuse.samples.text_file import read_questions, read_text

TWO = "What moves?\r\nIs it raining?\r\n"


@pytest.mark.parametrize(
    "data",
    [
        TWO.encode(),
        codecs.BOM_UTF8 + TWO.encode(),
        codecs.BOM_UTF16_LE + TWO.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + TWO.encode("utf-16-be"),
        TWO.replace("\r\n", "\n").encode(),
        TWO.replace("\r\n", "\r").encode(),
        b"\n\n  What moves?  \n\t\nIs it raining?",
        codecs.BOM_UTF8 + b'["What moves?", "Is it raining?"]',
        b'[{"question": "What moves?"}, {"messages": [{"role": "user", "content": "Is it raining?"}]}]',
        b'["<event>\\nWhat moves?", {"prompt": "Is it raining?"}]',
    ],
)
def test_questions_of_any_editor(tmp_path, data):
    path = tmp_path / "questions.txt"
    path.write_bytes(data)
    assert read_questions(path) == ("What moves?", "Is it raining?")


def test_only_line_ends_end_a_question(tmp_path):
    path = tmp_path / "questions.txt"
    path.write_text("one\u2028question\x0bhere\n", encoding="utf-8")
    assert len(read_questions(path)) == 1


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"[1]", b"[", b"\n", b'[{"answer": "x"}]', b'[""]', b"\xff\x80?", b"[{}]"]
)
def test_no_questions(tmp_path, data):
    path = tmp_path / "questions.txt"
    path.write_bytes(data)
    with pytest.raises(DatasetError) as caught:
        read_questions(path)
    assert str(path) in str(caught.value)


def test_other_defects(tmp_path):
    with pytest.raises(FileAccessError):
        read_questions(tmp_path / "none")
    path = tmp_path / "questions.txt"
    path.write_text("What <image>?")
    with pytest.raises(PromptError, match="special token"):
        read_questions(path)
    path.write_bytes("What?".encode("utf-16-le"))  # no mark: the nulls stay, as in any UTF-8 file
    assert read_text(path) == "W\0h\0a\0t\0?\0"
