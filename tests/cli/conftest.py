"""Fixtures of the tests of commands."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from unfuse.events import event_frames, write_eventgpt_npy
from unfuse.samples.dataset import MANIFEST_NAME
from unfuse.testing import synthetic_stream


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def dataset(tmp_path):
    """Rows with events, with frames, and with both."""
    root = tmp_path / "data"
    (root / "event_npy" / "s").mkdir(parents=True)
    (root / "event_image" / "s").mkdir(parents=True)
    rows = []
    for i in range(6):
        stream = synthetic_stream(seed=i)
        row = {"id": i, "conversations": [{"from": "human", "value": f"<event>\nWhat moves in {i}?"}]}
        if i % 3 != 1:
            write_eventgpt_npy(root / "event_npy" / "s" / f"{i}.npy", stream)
            row["event_data"] = f"s/{i}.npy"
        if i % 3 != 0:
            row["event_image"] = []
            for k, frame in enumerate(event_frames(stream)):
                Image.fromarray(frame).save(root / "event_image" / "s" / f"{i}_{k}.png")
                row["event_image"].append(f"s/{i}_{k}.png")
        rows.append(row)
    (root / MANIFEST_NAME).write_text(json.dumps(rows))
    return root
