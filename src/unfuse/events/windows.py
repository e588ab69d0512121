"""Slicing of a stream into runs before it is drawn; the terms are those of tonic's slicers.

Cuts of equal time and sliding windows are half-open and may hold no events; cuts of equal count always do.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from unfuse.errors import EventStreamError
from unfuse.events.stream import EventStream, TimeWindow


def split_equal_count(stream: EventStream, n_event_bins: int = 5) -> tuple[EventStream, ...]:
    """Return ``n_event_bins`` runs of equal event count, as EventGPT does; the last run takes the remainder.

    Source: ``common/common.py`` of the published code (XduSyL/EventGPT). Equal counts are not equal times.

    Raises:
        EventStreamError: fewer events than runs.
    """
    _positive("n_event_bins", n_event_bins)
    size = len(stream) // n_event_bins
    if not size:
        raise EventStreamError("events", found=len(stream), expected=f"at least {n_event_bins}, one per frame")
    edges = [i * size for i in range(n_event_bins)] + [len(stream)]
    return tuple(stream.slice(start, stop) for start, stop in pairwise(edges))


def split_equal_time(stream: EventStream, n_time_bins: int = 5) -> tuple[EventStream, ...]:
    """Return runs of equal time from the first event to the last event; the last event belongs to the last run.

    Edges are whole microseconds, rounded down.

    Raises:
        EventStreamError: no bins, or no events.
    """
    _positive("n_time_bins", n_time_bins)
    if not len(stream):
        raise EventStreamError("events", found="none", expected="at least one")
    start, duration = int(stream.t[0]), stream.duration_us
    inner = [start + duration * i // n_time_bins for i in range(1, n_time_bins)]
    edges = [0, *np.searchsorted(stream.t, inner, side="left").tolist(), len(stream)]
    return tuple(stream.slice(begin, end) for begin, end in pairwise(edges))


def slice_by_time(
    stream: EventStream, time_window: int, *, overlap: int = 0, include_incomplete: bool = False
) -> Iterator[EventStream]:
    """Yield windows of ``time_window`` microseconds from the first event on.

    Args:
        stream: at least one event.
        time_window: length in microseconds.
        overlap: microseconds that a window shares with the next.
        include_incomplete: also yield the last windows; they reach beyond the last event.

    Raises:
        EventStreamError: a length or overlap that does not move on.
    """
    for window in time_windows(
        int(stream.t[0]), int(stream.t[-1]) + 1, time_window, overlap=overlap, include_incomplete=include_incomplete
    ):
        edges = np.searchsorted(stream.t, [window.start_us, window.stop_us], side="left")
        yield stream.slice(int(edges[0]), int(edges[1]))


def slice_by_event_count(
    stream: EventStream, event_count: int, *, overlap: int = 0, include_incomplete: bool = False
) -> Iterator[EventStream]:
    """Yield windows of ``event_count`` events, ``overlap`` of them shared with the next window.

    Raises:
        EventStreamError: a length or overlap that does not move on.
    """
    for start, stop in _steps(0, len(stream), event_count, overlap, include_incomplete):
        yield stream.slice(start, stop)


def time_windows(
    start_us: int, stop_us: int, time_window: int, *, overlap: int = 0, include_incomplete: bool = False
) -> Iterator[TimeWindow]:
    """Yield the windows ``[start, start + time_window)`` of a recording that lasts ``[start_us, stop_us)``.

    Raises:
        EventStreamError: a length or overlap that does not move on.
    """
    for start, stop in _steps(start_us, stop_us, time_window, overlap, include_incomplete):
        yield TimeWindow(start_us=start, stop_us=stop)


def _steps(start: int, stop: int, length: int, overlap: int, incomplete: bool) -> Iterator[tuple[int, int]]:
    _positive("window", length)
    if not 0 <= overlap < length:
        raise EventStreamError("overlap", found=overlap, expected=f"0 to {length - 1}, less than the window")
    while start + length <= stop or (incomplete and start < stop):
        yield start, min(start + length, stop)
        start += length - overlap


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise EventStreamError(name, found=value, expected="at least 1")
