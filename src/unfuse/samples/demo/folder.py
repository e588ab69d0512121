"""Writes demo scenes as a folder of the instruction set: events, event frames, camera frames, video, and the JSON.

Every file is whole or absent and the JSON is written last, so that a call that was cut off is continued by the same
call; running it again changes nothing.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unfuse.errors import DatasetError, FileAccessError
from unfuse.events import EventStream, event_frames, write_eventgpt_npy
from unfuse.samples.dataset import MANIFEST_NAME
from unfuse.samples.demo.dialogue import draw_turns
from unfuse.samples.demo.scenes import demo_scene
from unfuse.samples.simulator import Chance, Picture, Scene, draw_chance, events_of
from unfuse.samples.video import write_frames

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
    """
    manifest = json.dumps([_entry(row) for row in rows], indent=1) + "\n"
    with _writable(out):
        _claim(out, manifest)
        workers = min(workers or os.cpu_count() or 1, len(rows))
        if workers == 1:
            for number, row in enumerate(rows, start=1):
                write_media(out, row)
                done(number)
        else:
            # Spawned: a forked child of a process with threads, as torch has them, may hang.
            with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
                for number in _in_turn(pool, out, rows, 2 * workers):
                    done(number)
        with _whole(out / MANIFEST_NAME) as partial:
            partial.write_text(manifest, encoding="utf-8")
        (out / _BEGUN).unlink(missing_ok=True)


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
        _write_picture(path, frame)
    seen = camera_frames(scene, chance, _CAMERA_FRAMES)
    for path, frame in zip(stills, seen, strict=True):
        _write_picture(path, frame)
    with _whole(video) as partial:
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


_BEGUN: Final = ".begun.json"
"""What is being written, while it is."""


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


def _claim(out: Path, manifest: str) -> None:
    """Says in the folder what will be in it, unless something else is."""
    out.mkdir(parents=True, exist_ok=True)
    for name in (MANIFEST_NAME, _BEGUN):
        if (out / name).is_file() and (out / name).read_text(encoding="utf-8") != manifest:
            raise DatasetError(
                str(out), found="another data set", expected="a new folder, or the same count and seed to go on"
            )
    if (out / MANIFEST_NAME).is_file() or (out / _BEGUN).is_file():
        return
    if any(out.iterdir()):
        raise DatasetError(str(out), found="a folder with other files in it", expected="a new folder")
    with _whole(out / _BEGUN) as partial:
        partial.write_text(manifest, encoding="utf-8")


def _in_turn(pool: ProcessPoolExecutor, out: Path, rows: Sequence[Row], ahead: int) -> Iterator[int]:
    """Rows handed out a few at a time, so that an error or an interrupt leaves little behind."""
    source = iter(rows)
    waiting = [pool.submit(write_media, out, row) for row in islice(source, ahead)]
    for number in range(1, len(rows) + 1):
        waiting.pop(0).result()
        waiting += [pool.submit(write_media, out, row) for row in islice(source, 1)]
        yield number


def _write_picture(path: Path, frame: NDArray[np.uint8]) -> None:
    with _whole(path) as partial:
        Image.fromarray(frame).save(partial, format="PNG")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A place beside ``path`` to write to; moved there if nothing went wrong."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o644)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def _writable(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FileAccessError(
            str(error.filename or out), found=error.strerror or error, expected="a folder with room to write in"
        ) from None
