"""Text: one event a line, four numbers, separated by commas, semicolons, bars, tabs or spaces.

A line with the names of the columns states their order (``decoders.columns`` lists the names). Without it, the order is
``t x y p`` (Event Camera Dataset) or ``x y p t`` (Metavision), whichever has times that never go back and valid
polarities. A file that fits both or neither is refused. The unit of the times is the unit in the name of their column,
else ``time_units.choose_unit`` decides.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from unfuse.decoders.columns import FIELDS
from unfuse.errors import EventFileError, EventStreamError
from unfuse.events.readers.text_layout import COMMENTS, TextLayout, is_text, read_layout
from unfuse.events.stream import EventStream, TimeWindow, empty_window, require_room
from unfuse.events.time_units import TimeUnit, choose_unit, to_microseconds
from unfuse.text_encoding import text_encoding

__all__ = ["is_text", "read_text"]

_LINES: Final = 1 << 20
"""Lines in one table; the first table decides the unit of the times."""
_EXACT: Final = 2.0**53
"""Larger floats skip whole numbers."""
_ORDERS: Final = (("t", "x", "y", "p"), ("x", "y", "p", "t"))
_OTHER_COMMENTS: Final = tuple(mark for mark in COMMENTS if mark != "#")


def read_text(path: Path, window: TimeWindow | None = None, time_unit: TimeUnit | None = None) -> EventStream:
    """Read a recording or a window of it.

    Args:
        path: the file.
        window: part of the recording.
        time_unit: unit of the times; None decides it.

    Raises:
        EventFileError: a line is no event, or the order of the columns is not known.
        EventStreamError: invalid events, or none in the window.
    """
    with path.open("rb") as head:
        encoding = text_encoding(head.read(4))
    with path.open(encoding=encoding, errors="replace") as file:
        layout = read_layout(path, file)
        reading = _Reading(path, layout, window, time_unit)
        while lines := list(islice(file, _LINES)):
            reading.add(lines)
    return reading.stream()


class _Reading:
    """A file while its lines are read."""

    def __init__(self, path: Path, layout: TextLayout, window: TimeWindow | None, unit: TimeUnit | None):
        self._path, self._layout, self._window = path, layout, window
        self._order = layout.order
        self._unit: str | None = unit or layout.unit
        self._whole = False
        self._notes: tuple[str, ...] = ()
        self._parts: list[dict[str, NDArray[Any]]] = []
        self._line = layout.lines + 1

    def add(self, lines: list[str]) -> None:
        """Read the next lines."""
        table = self._table(lines)
        self._line += len(lines)
        if not len(table):
            return
        if self._order is None:
            self._order = _order(self._path, table)
        columns = {name: table[:, i] for i, name in enumerate(self._order)}
        if self._unit is None:
            chosen = choose_unit(columns["t"], str(self._path))
            self._unit, self._whole, self._notes = chosen.unit, chosen.whole, (chosen.note,)
        if self._whole and (columns["t"] != np.rint(columns["t"])).any():
            raise EventStreamError(
                f"{self._path}: t",
                found=f"a fraction after {self._line - len(lines) - 1} lines of whole numbers",
                expected="times of one kind",
                fix="state the unit with --time-unit",
            )
        columns["t"] = to_microseconds(columns["t"], self._unit, str(self._path))
        self._parts.append(self._whole_numbers(columns))
        require_room(self._path, sum(len(part["t"]) for part in self._parts))

    def stream(self) -> EventStream:
        """Return the events, validated."""
        columns = {
            name: np.concatenate([part[name] for part in self._parts]) if self._parts else np.empty(0, np.int64)
            for name in FIELDS
        }
        if self._window is not None and not len(columns["t"]):
            raise empty_window(self._path, self._window)
        size = self._layout.size
        stream = EventStream.from_arrays(**columns, sensor_size=size, source=str(self._path))
        return replace(stream, notes=self._notes)

    def _table(self, lines: list[str]) -> NDArray[np.float64]:
        layout = self._layout
        if any(line.startswith(_OTHER_COMMENTS) for line in lines):
            lines = [line for line in lines if not line.startswith(_OTHER_COMMENTS)]
        if layout.truth_values or layout.decimal_comma:
            text = "".join(lines)
            text = text.replace(",", ".") if layout.decimal_comma else text
            text = re.sub(r"(?i)\btrue\b", "1", re.sub(r"(?i)\bfalse\b", "0", text))
            lines = text.splitlines()
        if not any(line.strip() for line in lines):
            return np.empty((0, len(FIELDS)))
        try:
            table = np.loadtxt(
                lines, delimiter=layout.separator, ndmin=2, comments="#", usecols=layout.use,
                quotechar='"' if layout.quoted else None,
            )  # fmt: skip
        except ValueError as error:
            reason = " ".join(str(error).split())[:120]
            raise EventFileError(
                str(self._path),
                found=f"a line from {self._line} on that is no event ({reason})",
                expected="four numbers a line",
            ) from None
        if table.shape[1] != len(FIELDS):
            raise EventFileError(
                str(self._path), found=f"{table.shape[1]} numbers a line", expected="four: x, y, t and p"
            )
        if not np.isfinite(table).all():
            raise EventFileError(str(self._path), found="nan or infinity", expected="four finite numbers a line")
        return table

    def _whole_numbers(self, columns: dict[str, NDArray[np.float64]]) -> dict[str, NDArray[Any]]:
        for name, column in columns.items():
            if (np.abs(column) >= _EXACT).any():
                largest = f"{column[np.abs(column).argmax()]:g}"
                raise EventStreamError(f"{self._path}: {name}", found=largest, expected="less than 2**53")
        whole = {name: column.astype(np.int64) for name, column in columns.items()}
        if fractions := [name for name in FIELDS if (whole[name] != columns[name]).any()]:
            raise EventStreamError(
                f"{self._path}: {', '.join(fractions)}", found="a fraction", expected="whole numbers"
            )
        if self._window is not None:
            inside = (whole["t"] >= self._window.start_us) & (whole["t"] < self._window.stop_us)
            whole = {name: column[inside] for name, column in whole.items()}
        return whole


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
