"""Read text files as editors on any system write them, and the questions in such a file."""

from __future__ import annotations

import json
import re
from pathlib import Path

from unfuse.errors import DatasetError, FileAccessError
from unfuse.samples.chat import read_question
from unfuse.samples.question import clean_question
from unfuse.text_encoding import text_encoding


def read_text(path: Path) -> str:
    """Return a file's text without a byte order mark.

    Raises:
        OSError: the file cannot be read.
        UnicodeDecodeError: the file is neither UTF-8, nor UTF-16 with a byte order mark.
    """
    data = path.read_bytes()
    return data.decode(text_encoding(data[:2]))


def read_questions(path: Path) -> tuple[str, ...]:
    """Read a JSON list of questions, or one question per line without empty lines.

    Raises:
        FileAccessError: the file cannot be read.
        DatasetError: the file is no text, or has no question.
        PromptError: a question with special tokens.
    """
    expected = "one question per line, or a JSON list"
    try:
        text = read_text(path)
        found = json.loads(text) if text.lstrip().startswith("[") else re.split(r"\r\n|\r|\n", text)
    except OSError as error:
        raise FileAccessError(str(path), found=error.strerror or error, expected="a file of questions") from None
    except UnicodeDecodeError:
        raise DatasetError(str(path), found="no UTF-8 text", expected=expected) from None
    except (ValueError, RecursionError) as error:
        raise DatasetError(str(path), found=f"malformed JSON ({error})", expected=expected) from None
    if text.lstrip().startswith("["):
        questions = [read_question(each, f"{path} question {number}") for number, each in enumerate(found)]
    else:
        questions = [line.strip() for line in found if line.strip()]
    if not questions:
        raise DatasetError(str(path), found="no questions", expected=expected)
    return tuple(clean_question(question) for question in questions)
