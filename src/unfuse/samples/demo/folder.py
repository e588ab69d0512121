"""Writes demo scenes as a folder of the instruction set: events, event frames, camera frames, video, and the JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from unfuse.events import EventStream, event_frames, write_eventgpt_npy
from unfuse.samples.demo.dialogue import draw_turns
from unfuse.samples.demo.scenes import demo_scene
from unfuse.samples.simulator import Chance, Picture, Scene, draw_chance, events_of
from unfuse.samples.video import video_library, write_frames
from unfuse.samples.writing import whole, write_folder, write_picture

FIRST_SEED: Final = 50_000_000
"""Of the data sets that a user makes; the model learned from none of them."""
_EVENT_FRAMES: Final = 5
_CAMERA_FRAMES: Final = 10
_RATE: Final = 25
"""Frames a second at which the video plays: slower than life, which lasts 50 ms."""
_SPLIT: Final = "demo"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the data set, all of it known from the seed."""

    sample_id: str
    name: str
    """Of its media, below each kind's folder."""
    seed: int
    question: str
    answer: str


def demo_rows(count: int, first_seed: int = FIRST_SEED) -> list[Row]:
    """Scenes of successive seeds with one question each."""
    rows = []
    for index in range(count):
        seed = first_seed + index
        (turn,) = draw_turns(demo_scene(seed)[1], np.random.default_rng([seed, 1]), 1)
        rows.append(Row(f"demo-{seed}", f"demo/{index:06d}", seed, turn.question, turn.answer))
    return rows


def write_demo_dataset(
    out: Path, rows: Sequence[Row], *, workers: int = 0, done: Callable[[int], None] = lambda number: None
) -> None:
    """Writes a whole folder, or what is missing in it.

    Args:
        out: a new folder, or one that an earlier call began with the same rows.
        rows: what is in it.
        workers: processes; 0 means one a core.
        done: told how many rows are written, each time there is one more.

    Raises:
        DatasetError: the folder holds another data set.
        FileAccessError: it cannot be written.
        MissingPackageError: PyAV is not installed.
    """
    video_library(out)
    write_folder(out, [_entry(row) for row in rows], rows, write_media, workers=workers, done=done)


def write_events(out: Path, row: Row) -> tuple[Scene, Chance, EventStream]:
    """Simulates one scene and writes its events."""
    scene, _ = demo_scene(row.seed)
    chance = draw_chance(scene)
    stream = events_of(scene, chance)
    target = out / "event_npy" / f"{row.name}.npy"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_eventgpt_npy(target, stream)
    return scene, chance, stream


def write_media(out: Path, row: Row) -> None:
    """Writes what is missing of one row's media."""
    pictures = [out / "event_image" / f"{row.name}_{i}.png" for i in range(_EVENT_FRAMES)]
    folder, video = out / "video" / row.name, out / "mp4" / f"{row.name}.mp4"
    stills = [folder / f"{i:06d}.png" for i in range(_CAMERA_FRAMES)]
    # The video is written last.
    if video.is_file():
        return
    scene, chance, stream = write_events(out, row)
    for path in (*pictures, *stills, video):
        path.parent.mkdir(parents=True, exist_ok=True)
    for path, frame in zip(pictures, event_frames(stream, _EVENT_FRAMES), strict=True):
        write_picture(path, frame)
    seen = camera_frames(scene, chance, _CAMERA_FRAMES)
    for path, frame in zip(stills, seen, strict=True):
        write_picture(path, frame)
    with whole(video) as partial:
        write_frames(partial, seen, _RATE)


def camera_frames(scene: Scene, chance: Chance, count: int) -> list[NDArray[np.uint8]]:
    """What a camera without colour would have seen at evenly spaced times, RGB uint8 ``[H, W, 3]``."""
    picture = Picture(scene, chance.texture)
    times = (np.arange(count) + 0.5) / count * scene.duration_us / 1e6
    grey = [(255 * picture.intensity(seconds)).round().astype(np.uint8) for seconds in times]
    return [np.repeat(frame[:, :, None], 3, axis=2) for frame in grey]


def manifest_of(rows: Sequence[Row]) -> str:
    """The JSON of a folder that holds events only."""
    keys = ("id", "split", "event_data", "conversations")
    return json.dumps([{key: _entry(row)[key] for key in keys} for row in rows], indent=1) + "\n"


def _entry(row: Row) -> dict[str, object]:
    return {
        "id": row.sample_id,
        "split": _SPLIT,
        "event_data": f"{row.name}.npy",
        "event_image": [f"{row.name}_{i}.png" for i in range(_EVENT_FRAMES)],
        "video_data": row.name,
        "mp4_data": f"{row.name}.mp4",
        "conversations": [
            {"from": "human", "value": f"<event>\n{row.question}"},
            {"from": "gpt", "value": row.answer},
        ],
    }
