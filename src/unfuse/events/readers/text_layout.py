"""Lines before the first event of a text file, and the form of its lines.

Tools write comments (``#``, ``%``, ``//``), the sensor's size (``%geometry:346,260``, or a line of two numbers), and a
line with the names of the columns.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

from unfuse.decoders.columns import FIELDS, column_of, find_columns
from unfuse.errors import EventFileError
from unfuse.text_encoding import text_encoding

_MAX_LINE: Final = 2000
_MAX_HEADER_LINES: Final = 10_000
COMMENTS: Final = ("#", "%", "//", ";")
_NUMBER: Final = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_DECIMAL_COMMA: Final = re.compile(r"[+-]?\d+,\d+(?:[eE][+-]?\d+)?")
_TRUTH: Final = re.compile(r"(?i)true|false")
_GEOMETRY: Final = re.compile(r"(?i)\b(?:geometry|resolution|sensor[ _]size)\W+(\d{1,5})\s*[x,*\s]\s*(\d{1,5})\b")
_SIDES: Final = tuple(re.compile(rf"(?i)\b{side}\W+(\d{{1,5}})\b") for side in ("width", "height"))


@dataclass(frozen=True, slots=True)
class TextLayout:
    """Form of the lines of events."""

    order: tuple[str, ...] | None
    """Names of the columns that are read; None if no line names them."""
    use: tuple[int, ...] | None
    """Numbers of these columns; None is all of a line."""
    unit: str | None
    """Unit of the times, if the name of their column says it."""
    size: tuple[int, int] | None
    """(width, height) of the sensor."""
    separator: str | None
    """None is white space."""
    decimal_comma: bool
    truth_values: bool
    """Whether lines hold True and False."""
    quoted: bool
    lines: int
    """Number of lines before the first event."""


def is_text(head: bytes) -> bool:
    """Return whether the first bytes of a file may be lines of events."""
    encoding = text_encoding(head)
    text = head.decode(encoding, errors="replace")
    if any(ord(c) < 32 and c not in "\t\r\n\f" for c in text) or "\ufffd" in text[:-2].replace("\ufffds", ""):
        return False
    named = {column_of(word) for line in text.splitlines()[:1] for word in _names(line)}
    return any(c.isdigit() for c in text) or (bool(named) and None not in named)


def read_layout(path: Path, file: TextIO) -> TextLayout:
    """Read the lines before the first event; the next line of the file is an event.

    Raises:
        EventFileError: a line is neither a comment, a size, the names of columns nor an event; its number and the
            unknown names are in the message.
    """
    names: list[str] | None = None
    size: tuple[int, int] | None = None
    for number in range(1, _MAX_HEADER_LINES):
        start = file.tell()
        line = file.readline(_MAX_LINE)
        text = line.strip()
        words = _words(text.split("#")[0].strip())
        if not line:
            return TextLayout(None, None, None, size, None, False, False, False, number - 1)
        if not text:
            continue
        if text.startswith(COMMENTS):
            content = text.lstrip("#%/; ")
            size = size or _size(content)
            if names is None and set(FIELDS) <= _fields(path, number, _names(content)).keys():
                names = _names(content)
        elif len(words) == 2 and size is None and all(word.isdigit() for word in words):
            size = int(words[0]), int(words[1])
        elif _is_event(words, names):
            file.seek(start)
            return _layout(path, text.split("#")[0].strip(), names, size, number)
        elif names is None:
            names = _header(path, number, text)
        else:
            raise EventFileError(f"{path} line {number}", found=repr(text[:60]), expected="four numbers: x, y, t and p")
    raise EventFileError(str(path), found=f"over {_MAX_HEADER_LINES} lines without an event", expected="events")


def _is_event(words: list[str], names: list[str] | None) -> bool:
    """Return whether the words of a line are numbers; further columns may hold other words."""
    if names is not None and len(words) == len(names):
        words = [words[names.index(column.name)] for column in find_columns(names).values()]
    return all(_NUMBER.fullmatch(word) or _TRUTH.fullmatch(word) for word in words)


def _layout(path: Path, line: str, names: list[str] | None, size: tuple[int, int] | None, number: int) -> TextLayout:
    separator, decimal_comma = _separator(line)
    count = len(line.rstrip(separator).split(separator))
    order, use, unit = None, None, None
    if names is not None:
        columns = find_columns(names)
        order = FIELDS
        use = tuple(names.index(columns[field].name) for field in order)
        unit = columns["t"].unit
        if count != len(names) and max(use) >= count:
            raise EventFileError(
                f"{path} line {number}", found=f"{count} numbers", expected=f"{len(names)}, as the line of names has"
            )
    elif count != len(FIELDS):
        raise EventFileError(str(path), found=f"{count} numbers a line", expected="four: x, y, t and p")
    elif line.endswith(separator or "\n"):
        use = tuple(range(len(FIELDS)))
    return TextLayout(
        order, use, unit, size, separator, decimal_comma, bool(re.search(r"(?i)true|false", line)), '"' in line,
        number - 1,
    )  # fmt: skip


def _header(path: Path, number: int, text: str) -> list[str]:
    names = _names(text)
    found = _fields(path, number, names)
    if missing := [field for field in FIELDS if field not in found]:
        unknown = ", ".join(repr(name) for name in names if column_of(name) is None)[:100]
        raise EventFileError(
            f"{path} line {number}",
            found=f"no column {', '.join(missing)}" + (f" but the unknown {unknown}" if unknown else ""),
            expected="the names x, y, t and p, in any order",
        )
    return names


def _fields(path: Path, number: int, names: list[str]) -> dict[str, object]:
    try:
        return dict(find_columns(names))
    except ValueError as error:
        raise EventFileError(f"{path} line {number}", found=str(error), expected="each column once") from None


def _names(line: str) -> list[str]:
    """Return the names of columns; "time [us]" is one."""
    text = re.sub(r"\s+(?=[\[(])", "", line.strip().lstrip("#%/ "))
    separator = next((mark for mark in (";", ",", "|", "\t") if mark in text), None)
    names = [name.strip() for name in text.split(separator)]
    return names[:-1] if names and not names[-1] else names


def _separator(line: str) -> tuple[str | None, bool]:
    """Return the separator of numbers, and whether the comma is the decimal mark."""
    if ";" in line:
        return ";", "," in line
    if "," not in line:
        return ("|" if "|" in line else None), False
    words = line.split()
    if len(words) >= len(FIELDS) and any(_DECIMAL_COMMA.fullmatch(word) for word in words):
        return None, True
    return ",", False


def _words(line: str) -> list[str]:
    separator, decimal_comma = _separator(line)
    text = line.replace(",", ".") if decimal_comma else line
    words = [word.strip().strip('"') for word in text.split(separator)]
    return words[:-1] if words and not words[-1] else words


def _size(text: str) -> tuple[int, int] | None:
    if found := _GEOMETRY.search(text):
        return int(found[1]), int(found[2])
    width, height = (side.search(text) for side in _SIDES)
    return (int(width[1]), int(height[1])) if width and height else None
