"""Writes recordings in EventGPT's published layout."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

from unfuse.events.stream import EventStream


def write_eventgpt_npy(path: str | Path, stream: EventStream) -> None:
    """A pickled dict of x, y (uint16), t (int64, microseconds) and p (uint8), whole or not at all."""
    target = Path(path)
    columns = {"x": stream.x, "y": stream.y, "t": stream.t, "p": stream.p}
    handle, partial = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, np.array(columns, dtype=object), allow_pickle=True)
            file.flush()
            os.fsync(file.fileno())
        Path(partial).replace(target)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
