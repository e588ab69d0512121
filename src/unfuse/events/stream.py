"""The event stream that every reader returns, validated once and never changed after.

Readers are not trusted: several well-known ones return wrong events without an error. Every stream is checked for equal
lengths, integer types, order in time, coordinates and polarity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from unfuse.errors import EventStreamError

_T = TypeVar("_T", bound=np.generic)

MAX_EVENTS: Final = 1_000_000_000
"""Of one stream in memory; more are read window by window."""

MAX_AXIS: Final = 8192
"""Pixels per axis; no event sensor comes near it, and one forged coordinate would otherwise size a frame."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeWindow:
    """A half-open interval ``[start_us, stop_us)`` on a recording's own clock, in microseconds."""

    start_us: int
    stop_us: int

    def __post_init__(self) -> None:
        if not 0 <= self.start_us < self.stop_us:
            raise EventStreamError(
                "time window", found=f"[{self.start_us}, {self.stop_us}) us", expected="0 <= start < stop"
            )


@dataclass(frozen=True, slots=True, eq=False)
class EventStream:
    """Events in order of time. Arrays are one-dimensional, of equal length and read-only."""

    x: NDArray[np.uint16]
    """Column."""
    y: NDArray[np.uint16]
    """Row."""
    t: NDArray[np.int64]
    """Microseconds."""
    p: NDArray[np.uint8]
    """1 for brighter, 0 for darker."""
    sensor_size: tuple[int, int] | None = None
    """(width, height) if the source states it."""
    notes: tuple[str, ...] = ()
    """Decisions of the reader, such as the unit of times that the source does not state."""

    @classmethod
    def from_arrays(
        cls,
        x: NDArray[Any],
        y: NDArray[Any],
        t: NDArray[Any],
        p: NDArray[Any],
        *,
        sensor_size: tuple[int, int] | None = None,
        source: str = "events",
    ) -> Self:
        """Check four columns and copy them.

        Args:
            x: column, any integer type.
            y: row, any integer type.
            t: microseconds, any integer type.
            p: polarity: 0 and 1, -1 and 1, or bool; stored as 0 and 1.
            sensor_size: (width, height) that coordinates must lie in.
            source: name for messages.

        Raises:
            EventStreamError: names the column, the event, and both values.
        """
        columns = {"x": np.asarray(x), "y": np.asarray(y), "t": np.asarray(t), "p": np.asarray(p)}
        for name, column in columns.items():
            if column.ndim != 1:
                raise EventStreamError(f"{source}: {name}", found=f"{column.ndim} dimensions", expected="one dimension")
            if column.dtype.kind not in "iub":
                raise EventStreamError(f"{source}: {name}", found=str(column.dtype), expected="integers")
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise EventStreamError(source, found=f"lengths {lengths}", expected="equal lengths of x, y, t and p")
        if not lengths["t"]:
            raise EventStreamError(source, found="no events", expected="at least one")
        width, height = sensor_size or (MAX_AXIS, MAX_AXIS)
        return cls(
            _frozen(_coordinate(columns["x"], "x", width, source)),
            _frozen(_coordinate(columns["y"], "y", height, source)),
            _frozen(_time(columns["t"], source)),
            _frozen(_polarity(columns["p"], source)),
            sensor_size,
        )

    def __len__(self) -> int:
        return len(self.t)

    @property
    def duration_us(self) -> int:
        """Last time minus first time."""
        return int(self.t[-1] - self.t[0])

    def slice(self, start: int, stop: int) -> Self:
        """Return events ``start`` to ``stop``, without copying."""
        return type(self)(
            self.x[start:stop], self.y[start:stop], self.t[start:stop], self.p[start:stop], self.sensor_size, self.notes
        )

    def window(self, window: TimeWindow) -> Self:
        """Return the events of a time window, without copying.

        Raises:
            EventStreamError: there is none.
        """
        start, stop = np.searchsorted(self.t, [window.start_us, window.stop_us], side="left")
        if start == stop:
            raise EventStreamError(
                f"window [{window.start_us}, {window.stop_us}) us",
                found="no events",
                expected=f"a stretch of {self.t[0]} to {self.t[-1]} us",
            )
        return self.slice(int(start), int(stop))


def empty_window(source: object, window: TimeWindow, span: Sequence[int] | None = None) -> EventStreamError:
    """Return the error of a window without events; ``span`` is the recording's first and last time, if known."""
    return EventStreamError(
        f"{source}, window [{window.start_us}, {window.stop_us}) us",
        found="no events",
        expected=f"a stretch of the recording's {span[0]} to {span[1]} us" if span else "a stretch with events",
    )


def require_room(source: object, events: int) -> None:
    """Refuse more events than are held at once.

    Raises:
        EventStreamError: too many.
    """
    if events > MAX_EVENTS:
        raise EventStreamError(str(source), found=f"{events} events or more", expected=f"at most {MAX_EVENTS} at once")


def _coordinate(column: NDArray[Any], name: str, limit: int, source: str) -> NDArray[np.uint16]:
    low, high = int(column.min()), int(column.max())
    if low < 0 or high >= limit:
        at = int(np.flatnonzero((column < 0) | (column >= limit))[0])
        raise EventStreamError(f"{source}: {name} of event {at}", found=int(column[at]), expected=f"0 to {limit - 1}")
    return column.astype(np.uint16)


def _time(column: NDArray[Any], source: str) -> NDArray[np.int64]:
    if column.dtype == np.uint64 and int(column.max()) >= 2**63:
        raise EventStreamError(f"{source}: t", found=int(column.max()), expected="microseconds below 2**63")
    # Before any arithmetic: differences of unsigned times wrap.
    t = column.astype(np.int64)
    if t[0] < 0:
        raise EventStreamError(f"{source}: t of event 0", found=int(t[0]), expected="microseconds from 0 on")
    backward = np.flatnonzero(t[1:] < t[:-1])
    if len(backward):
        at = int(backward[0]) + 1
        raise EventStreamError(
            f"{source}: t of event {at}",
            found=f"{t[at]} us after {t[at - 1]} us",
            expected="times that never go back",
            fix="sort the events by time",
        )
    return t


def _polarity(column: NDArray[Any], source: str) -> NDArray[np.uint8]:
    positive: NDArray[np.bool_] = column == 1
    if not np.all(positive | (column == 0)) and not np.all(positive | (column == -1)):
        at = int(np.flatnonzero(~positive & (column != 0))[0])
        raise EventStreamError(f"{source}: p of event {at}", found=int(column[at]), expected="0 and 1 (or -1 and 1)")
    return positive.astype(np.uint8)


def _frozen(column: NDArray[_T]) -> NDArray[_T]:
    column.setflags(write=False)
    return column
