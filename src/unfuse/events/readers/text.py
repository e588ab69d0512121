"""Text: one event a line, four numbers, separated by commas or white space.

A first line with the names x, y, t and p (or timestamp, polarity) states the order. Without it, the order is
``t x y p`` (Event Camera Dataset) or ``x y p t`` (Metavision), whichever has times that never go back and valid
polarities. A file that fits both or neither is refused. A time with a decimal point is in seconds, else microseconds.
A first line of two numbers is the sensor's width and height.
"""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np
from numpy.typing import NDArray

from unfuse.errors import EventFileError, EventStreamError
from unfuse.events.stream import EventStream, TimeWindow, empty_window, require_room

_LINES: Final = 1 << 20
"""Lines in one table."""
_MAX_LINE: Final = 200
_NAMES: Final = {"x": "x", "y": "y", "t": "t", "p": "p", "timestamp": "t", "time": "t", "polarity": "p", "pol": "p"}
_EXACT: Final = 2.0**53
"""Larger floats skip whole numbers."""
_ORDERS: Final = (("t", "x", "y", "p"), ("x", "y", "p", "t"))
_NUMBER: Final = re.compile(rb"\s*[-+]?[0-9.]")


def is_text(head: bytes) -> bool:
    """Return whether the first bytes of a file may be lines of events."""
    line = head.split(b"\n")[0]
    named = re.fullmatch(rb"[ -~\t]*", line.rstrip(b"\r")) and set(_words(line.decode("latin1"))) <= set(_NAMES)
    return bool(_NUMBER.match(head)) or bool(named and line.strip())


def read_text(path: Path, window: TimeWindow | None = None) -> EventStream:
    """Read a recording or a window of it.

    Raises:
        EventFileError: a line is no event, or the order of the columns is not known.
        EventStreamError: invalid events, or none in the window.
    """
    try:
        with path.open(encoding="ascii") as file:
            order, size, seconds, separator = _layout(path, file)
            parts, at = [], 1
            while lines := list(islice(file, _LINES)):
                table = _table(path, lines, separator, at)
                at += len(lines)
                if order is None:
                    order = _order(path, table)
                parts.append(_columns(table, order, seconds, window))
                require_room(path, sum(len(part["t"]) for part in parts))
    except UnicodeDecodeError as error:
        raise EventFileError(str(path), found=f"byte {error.object[error.start]:#x}", expected="ASCII text") from None
    columns = {
        name: np.concatenate([part[name] for part in parts]) if parts else np.empty(0, np.int64) for name in "xytp"
    }
    if window is not None and not len(columns["t"]):
        raise empty_window(path, window)
    return EventStream.from_arrays(**columns, sensor_size=size, source=str(path))


def _layout(path: Path, file: TextIO) -> tuple[tuple[str, ...] | None, tuple[int, int] | None, bool, str | None]:
    """Return the named order or None, the sensor size or None, whether times are in seconds, and the separator."""
    order: tuple[str, ...] | None = None
    size: tuple[int, int] | None = None
    while True:
        start = file.tell()
        line = file.readline(_MAX_LINE)
        words = _words(line)
        if len(words) == 2 and size is None and all(word.isdigit() for word in words):
            size = int(words[0]), int(words[1])
        elif order is None and words and all(word in _NAMES for word in words):
            order = tuple(_NAMES[word] for word in words)
            if sorted(order) != ["p", "t", "x", "y"]:
                raise EventFileError(str(path), found=f"columns {', '.join(words)}", expected="x, y, t and p")
        else:
            file.seek(start)
            return order, size, "." in line, "," if "," in line else None


def _table(path: Path, lines: list[str], separator: str | None, first: int) -> NDArray[np.float64]:
    try:
        table = np.loadtxt(lines, delimiter=separator, ndmin=2, comments=None)
    except ValueError as error:
        reason = " ".join(str(error).split())[:120]
        raise EventFileError(
            str(path), found=f"a line from {first} on that is no event ({reason})", expected="four numbers a line"
        ) from None
    if table.shape[1] != 4:
        raise EventFileError(str(path), found=f"{table.shape[1]} numbers a line", expected="four: x, y, t and p")
    if not np.isfinite(table).all():
        raise EventFileError(str(path), found="nan or infinity", expected="four finite numbers a line")
    return table


def _order(path: Path, table: NDArray[np.float64]) -> tuple[str, ...]:
    fitting = [order for order in _ORDERS if _fits(table, order)]
    if len(fitting) != 1:
        raise EventFileError(
            str(path),
            found="columns that fit " + ("both t x y p and x y p t" if fitting else "neither t x y p nor x y p t"),
            expected="a first line that names them",
            fix="put the line x,y,p,t (or whatever the order is) at its top",
        )
    return fitting[0]


def _fits(table: NDArray[np.float64], order: tuple[str, ...]) -> bool:
    times, polarities = table[:, order.index("t")], table[:, order.index("p")]
    return bool((np.diff(times) >= 0).all() and np.isin(polarities, (-1, 0, 1)).all())


def _columns(
    table: NDArray[np.float64], order: tuple[str, ...], seconds: bool, window: TimeWindow | None
) -> dict[str, NDArray[Any]]:
    columns = {name: table[:, i] for i, name in enumerate(order)}
    if seconds:
        columns["t"] = np.rint(columns["t"] * 1e6)
    for name, column in columns.items():
        if (np.abs(column) >= _EXACT).any():
            raise EventStreamError(name, found=f"{column[np.abs(column).argmax()]:g}", expected="less than 2**53")
    whole = {name: column.astype(np.int64) for name, column in columns.items()}
    if any((whole[name] != columns[name]).any() for name in "xytp"):
        raise EventStreamError("x, y, t or p", found="a fraction", expected="whole numbers")
    if window is not None:
        inside = (whole["t"] >= window.start_us) & (whole["t"] < window.stop_us)
        whole = {name: column[inside] for name, column in whole.items()}
    return whole


def _words(line: str) -> list[str]:
    return [word for word in re.split(r"[\s,;]+", line.strip().lower().lstrip("# ")) if word]
