"""Write recordings in EventGPT's published layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unfuse.atomic_files import complete_file
from unfuse.events.stream import EventStream


def write_eventgpt_npy(path: str | Path, stream: EventStream) -> None:
    """Write a pickled dict of x, y (uint16), t (int64, microseconds) and p (uint8), completely or not at all."""
    columns = {"x": stream.x, "y": stream.y, "t": stream.t, "p": stream.p}
    with complete_file(Path(path), durable=True) as partial, partial.open("wb") as file:
        np.save(file, np.array(columns, dtype=object), allow_pickle=True)
