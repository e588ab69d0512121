"""iniVation AEDAT4 through the package aedat."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import aedat

from unfuse.decoders.batches import Batch, Decoded, RefusedError, batch


def decode(path: str, start: int | None, stop: int | None) -> Decoded:
    """Return the packets of the file's one stream of events."""
    decoder = aedat.Decoder(path)
    streams = {number: stream for number, stream in decoder.id_to_stream().items() if stream["type"] == "events"}
    if len(streams) != 1:
        raise RefusedError(f"{len(streams)} streams of events", "one")
    ((number, stream),) = streams.items()
    return Decoded(_batches(decoder, number, start, stop), (int(stream["width"]), int(stream["height"])))


def _batches(decoder: Any, number: int, start: int | None, stop: int | None) -> Iterator[Batch]:
    for packet in decoder:
        if packet["stream_id"] == number and "events" in packet:
            events = packet["events"]
            # The library calls brighter "on".
            yield batch(events["x"], events["y"], events["t"], events["on"], start, stop)
