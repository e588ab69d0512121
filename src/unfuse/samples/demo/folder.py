"""Write demo scenes as a folder of the instruction set: events, event frames, camera frames, video, and the JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from unfuse.atomic_files import complete_file, make_folder
from unfuse.events import EventStream, event_frames, write_eventgpt_npy
from unfuse.samples.demo.dialogue import draw_turns
from unfuse.samples.demo.scenes import demo_scene
from unfuse.samples.simulator import Randomness, SceneRenderer, SimulatedScene, draw_randomness, simulate_events
from unfuse.samples.video import video_library, write_frames
from unfuse.samples.writing import write_folder, write_picture

FIRST_SEED: Final = 50_000_000
"""First seed of the datasets that a user makes; none is in the training set."""
_EVENT_FRAMES: Final = 5
_CAMERA_FRAMES: Final = 10
_RATE: Final = 25
"""Frame rate of the video, in slow motion: the scene lasts 50 ms."""
_SPLIT: Final = "demo"


@dataclass(frozen=True, slots=True)
class DemoRow:
    """One row of the dataset, determined by the seed."""

    sample_id: str
    name: str
    """Name of its media, below each kind's folder."""
    seed: int
    question: str
    answer: str


def demo_rows(count: int, first_seed: int = FIRST_SEED) -> list[DemoRow]:
    """Return rows of successive seeds with one question each."""
    rows = []
    for index in range(count):
        seed = first_seed + index
        (turn,) = draw_turns(demo_scene(seed)[1], np.random.default_rng([seed, 1]), 1)
        rows.append(DemoRow(f"demo-{seed}", f"demo/{index:06d}", seed, turn.question, turn.answer))
    return rows


def write_demo_dataset(
    out: Path, rows: Sequence[DemoRow], *, workers: int = 0, done: Callable[[int], None] = lambda number: None
) -> None:
    """Write a folder, or the missing files of an unfinished one.

    Args:
        out: a new folder, or an unfinished one with equal rows.
        rows: rows of the dataset.
        workers: processes; 0 means one per core.
        done: called with the number of rows written after each.

    Raises:
        DatasetError: the folder holds another dataset.
        FileAccessError: the folder cannot be written.
        MissingPackageError: PyAV is not installed.
    """
    video_library(out)
    write_folder(out, [_entry(row) for row in rows], rows, write_media, workers=workers, done=done)


def write_events(out: Path, row: DemoRow) -> tuple[SimulatedScene, Randomness, EventStream]:
    """Simulate one scene and write its events."""
    scene, _ = demo_scene(row.seed)
    randomness = draw_randomness(scene)
    stream = simulate_events(scene, randomness)
    target = out / "event_npy" / f"{row.name}.npy"
    make_folder(target.parent)
    write_eventgpt_npy(target, stream)
    return scene, randomness, stream


def write_media(out: Path, row: DemoRow) -> None:
    """Write the missing media of one row."""
    pictures = [out / "event_image" / f"{row.name}_{i}.png" for i in range(_EVENT_FRAMES)]
    folder, video = out / "video" / row.name, out / "mp4" / f"{row.name}.mp4"
    stills = [folder / f"{i:06d}.png" for i in range(_CAMERA_FRAMES)]
    # The video is written last.
    if video.is_file():
        return
    scene, randomness, stream = write_events(out, row)
    for path in (*pictures, *stills, video):
        make_folder(path.parent)
    for path, frame in zip(pictures, event_frames(stream, _EVENT_FRAMES), strict=True):
        write_picture(path, frame)
    frames = camera_frames(scene, randomness, _CAMERA_FRAMES)
    for path, frame in zip(stills, frames, strict=True):
        write_picture(path, frame)
    with complete_file(video) as partial:
        write_frames(partial, frames, _RATE)


def camera_frames(scene: SimulatedScene, randomness: Randomness, count: int) -> list[NDArray[np.uint8]]:
    """Return grey images of the scene at evenly spaced times, as RGB uint8 ``[H, W, 3]``."""
    renderer = SceneRenderer(scene, randomness.texture)
    times = (np.arange(count) + 0.5) / count * scene.duration_us / 1e6
    grey = [(255 * renderer.intensity(seconds)).round().astype(np.uint8) for seconds in times]
    return [np.repeat(frame[:, :, None], 3, axis=2) for frame in grey]


def manifest_of(rows: Sequence[DemoRow]) -> str:
    """Return the JSON of a folder that holds events only."""
    keys = ("id", "split", "event_data", "conversations")
    return json.dumps([{key: _entry(row)[key] for key in keys} for row in rows], indent=1) + "\n"


def _entry(row: DemoRow) -> dict[str, object]:
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
