"""Prophesee RAW in EVT3 through the package evt3. It reads any file as EVT3, so the caller checks the header."""

from __future__ import annotations

from collections.abc import Iterator

import evt3

from unfuse.decoders.batches import Batch, Decoded, batch


def decode(path: str, start: int | None, stop: int | None) -> Decoded:
    """Return batches, in bounded memory."""
    source = evt3.decode_file_batches(path)
    return Decoded(_batches(source, start, stop), None)


def _batches(source: Iterator[evt3.Events], start: int | None, stop: int | None) -> Iterator[Batch]:
    for events in source:
        yield batch(events.x, events.y, events.t, events.p, start, stop)
