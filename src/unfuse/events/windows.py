"""How a stream is cut into runs before it is drawn."""

from __future__ import annotations

from itertools import pairwise

from unfuse.errors import EventStreamError
from unfuse.events.stream import EventStream


def split_equal_count(stream: EventStream, n_event_bins: int = 5) -> tuple[EventStream, ...]:
    """EventGPT's cut: ``n_event_bins`` runs of equal event count, the last one takes the remainder.

    Source: ``common/common.py`` of the published code (XduSyL/EventGPT). Equal counts are not equal times.

    Raises:
        EventStreamError: fewer events than runs.
    """
    if n_event_bins < 1:
        raise EventStreamError("n_event_bins", found=n_event_bins, expected="at least 1")
    size = len(stream) // n_event_bins
    if not size:
        raise EventStreamError("events", found=len(stream), expected=f"at least {n_event_bins}, one a frame")
    edges = [i * size for i in range(n_event_bins)] + [len(stream)]
    return tuple(stream.slice(start, stop) for start, stop in pairwise(edges))
