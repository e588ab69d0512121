"""Write recordings of random events in the published layout."""

from __future__ import annotations

import json
from pathlib import Path

from unfuse.events.write import write_eventgpt_npy
from unfuse.samples import Dataset, read_dataset
from unfuse.samples.dataset import MANIFEST_NAME
from unfuse.testing import synthetic_stream


def write_recordings(folder: Path, samples: int, events: int) -> Dataset:
    """Write different recordings of 50 ms at 640 x 480 with a question each; return the dataset."""
    recordings = folder / "event_npy" / "random"
    recordings.mkdir(parents=True)
    rows = []
    for index in range(samples):
        write_eventgpt_npy(recordings / f"{index:06d}.npy", synthetic_stream(events, seed=index, size=(640, 480)))
        turns = [{"from": "human", "value": "<event>\nWhat are the key elements in this scene?"}]
        rows.append({"id": f"{index:06d}", "event_data": f"random/{index:06d}.npy", "conversations": turns})
    (folder / MANIFEST_NAME).write_text(json.dumps(rows), encoding="utf-8")
    return read_dataset(folder)
