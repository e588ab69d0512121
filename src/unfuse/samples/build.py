"""Cuts recordings into windows and writes them as a folder of the instruction set.

What is in the folder is planned first, from the times of events alone: then every window is read, drawn and written by
itself, in any process. Windows of a DSEC recording are read where they are written.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final

from unfuse.errors import DatasetError, InputError
from unfuse.events import EventStream, event_frames, write_eventgpt_npy
from unfuse.events.readers import child
from unfuse.events.rectify import read_rectify_map
from unfuse.samples.media import read_image
from unfuse.samples.question import clean_question
from unfuse.samples.sources import Recording
from unfuse.samples.video import write_frames
from unfuse.samples.writing import whole, write_folder, write_picture
from unfuse.stages import DEFAULT_QUESTION

_UNITS: Final = {"s": 1_000_000, "ms": 1_000, "us": 1}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """How recordings are cut."""

    window_us: int | None = 1_000_000
    """Length in time; None where it is a number of events."""
    events: int | None = None
    stride: int | None = None
    """From one window's start to the next, in microseconds or events; None is the length."""
    frames: int = 5
    """Event frames drawn of each."""
    rectify: bool = False
    """Whether events are moved to their places in the rectified picture; those that leave it are dropped."""

    def __post_init__(self) -> None:
        if (self.window_us is None) == (self.events is None):
            raise InputError("window", found="both a time and a number of events", expected="one")
        if self.length < 1:
            raise InputError("window", found=self.length, expected="at least 1")
        if self.step < 1:
            raise InputError("stride", found=self.step, expected="at least 1")
        if self.frames < 1:
            raise InputError("frames", found=self.frames, expected="at least 1")

    @property
    def length(self) -> int:
        """In microseconds or events."""
        return int(self.window_us or self.events or 0)

    @property
    def step(self) -> int:
        """In the same unit."""
        return self.length if self.stride is None else self.stride


@dataclass(frozen=True, slots=True)
class Window:
    """One window of a recording: events ``first`` to ``last`` by their number."""

    name: str
    """Of its media, below each kind's folder."""
    split: str
    start_us: int
    stop_us: int
    first: int
    last: int
    frames: int
    source: Path
    pictures: tuple[Path, ...]
    rate: int
    rectify_map: Path | None = None
    stream: EventStream | None = None
    """Its events, where they were read already."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All windows, and how many were left out because they hold fewer events than frames."""

    windows: tuple[tuple[Recording, tuple[Window, ...]], ...]
    left_out: int

    @property
    def count(self) -> int:
        """Windows that will be written."""
        return sum(len(windows) for _, windows in self.windows)


def parse_time(text: str) -> int:
    """Microseconds of "1s", "500ms", "50ms" or "250us".

    Raises:
        InputError: anything else, or nothing of a microsecond.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|ms|us)", text.strip())
    value = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if value < 1 or value != round(value):
        raise InputError("time", found=repr(text), expected='a length such as "1s", "500ms" or "250us"')
    return round(value)


def read_questions(path: Path) -> tuple[str, ...]:
    """A JSON list of questions, or one a line.

    Raises:
        DatasetError: no such file, none in it, or no text.
        PromptError: one with special tokens.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = (
            json.loads(text) if text.lstrip().startswith("[") else [line for line in text.splitlines() if line.strip()]
        )
    except (OSError, ValueError) as error:
        raise DatasetError(
            str(path), found=f"no readable questions ({error})", expected="one a line, or a JSON list"
        ) from None
    if not found or not all(isinstance(one, str) and one.strip() for one in found):
        raise DatasetError(str(path), found="no questions", expected="one a line, or a JSON list of them")
    return tuple(clean_question(one) for one in found)


def plan(recordings: Sequence[Recording], cut: Cut, max_windows: int | None = None) -> Plan:
    """Finds the windows of every recording; whole ones only.

    Args:
        recordings: what to cut.
        cut: how.
        max_windows: of each recording, the first so many.

    Raises:
        InputError: a recording cannot be read.
        DatasetError: no window at all.
    """
    parts, left_out = [], 0
    for recording in recordings:
        windows = list(islice(_windows(recording, cut), max_windows))
        kept = [window for window in windows if window.last - window.first >= cut.frames]
        left_out += len(windows) - len(kept)
        parts.append((recording, tuple(kept)))
    found = Plan(tuple(parts), left_out)
    if not found.count:
        span = recordings[0].facts["span"]
        raise DatasetError(
            str(recordings[0].events),
            found=f"no window with events in {span[0]} to {span[1]} us" if span else "no events",
            expected=f"at least one of {cut.length} {'us' if cut.window_us else 'events'}",
        )
    return found


def write_dataset(
    out: Path,
    found: Plan,
    questions: Sequence[str] = (DEFAULT_QUESTION,),
    *,
    workers: int = 0,
    done: Callable[[int], None] = lambda number: None,
) -> None:
    """Writes a whole folder, or what is missing in it.

    Args:
        out: a new folder, or one that an earlier call began with the same plan.
        found: the windows.
        questions: each is asked of every window, a row each.
        workers: processes; 0 means one a core.
        done: told how many windows are written.

    Raises:
        InputError: a window cannot be read, or the folder not written.
    """
    windows = [window for _, part in found.windows for window in part]
    entries = [_entry(window, questions, number) for window in windows for number in range(len(questions))]
    write_folder(out, entries, _tasks(found), write_window, workers=min(workers, len(windows)), done=done)


def write_window(out: Path, window: Window) -> None:
    """Writes what is missing of one window's media; the events last."""
    target = out / "event_npy" / f"{window.name}.npy"
    if target.is_file():
        return
    stream = window.stream or child.decode_events(window.source, window.first, window.last)
    if window.rectify_map is not None:
        stream = read_rectify_map(window.rectify_map)(stream)
    folder = out / "event_image" / window.name
    for path in (target, folder, out / "mp4" / window.name):
        path.parent.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(event_frames(stream, window.frames)):
        write_picture(folder.with_name(f"{folder.name}_{number}.png"), frame)
    if window.pictures:
        stills = out / "video" / window.name
        stills.mkdir(parents=True, exist_ok=True)
        for picture in window.pictures:
            with whole(stills / picture.name) as partial:
                shutil.copyfile(picture, partial)
        with whole(out / "mp4" / f"{window.name}.mp4") as partial:
            write_frames(partial, map(read_image, window.pictures), window.rate)
    write_eventgpt_npy(target, stream)


def _windows(recording: Recording, cut: Cut) -> Iterator[Window]:
    """In order; the last one ends with or before the recording."""
    span = recording.facts["span"]
    if span is None:
        return
    if cut.window_us is not None:
        # To whole milliseconds: a recording of 60 s has 60 windows of 1 s, though no event is at its very edges.
        begin, end = span[0] // 1000 * 1000, -(-(span[1] + 1) // 1000) * 1000
        edges = [(start, start + cut.length) for start in range(begin, end - cut.length + 1, cut.step)]
        flat = recording.places([edge for pair in edges for edge in pair])
        places = list(zip(flat[::2], flat[1::2], strict=True))
    else:
        places = [(s, s + cut.length) for s in range(0, recording.facts["events"] + 1 - cut.length, cut.step)]
        flat = recording.times([number for first, last in places for number in (first, last - 1)])
        edges = [(start, end + 1) for start, end in zip(flat[::2], flat[1::2], strict=True)]
    for number, ((start, stop), (first, last)) in enumerate(zip(edges, places, strict=True)):
        yield Window(
            name=f"{recording.name}/{number:06d}",
            split=recording.split,
            start_us=start,
            stop_us=stop,
            first=first,
            last=last,
            frames=cut.frames,
            source=recording.events,
            pictures=recording.camera.between(start, stop),
            rate=recording.camera.rate,
            rectify_map=recording.rectify_map if cut.rectify else None,
        )


def _tasks(found: Plan) -> Iterator[Window]:
    """Windows, with their events where those are read already."""
    for recording, windows in found.windows:
        for window in windows:
            yield (
                window
                if recording.is_dsec
                else replace(window, stream=recording.stream.slice(window.first, window.last))
            )


def _entry(window: Window, questions: Sequence[str], number: int) -> dict[str, object]:
    sequence = window.name.split("/")[0]
    suffix = f"-q{number}" if len(questions) > 1 else ""
    media: dict[str, object] = {
        "event_data": f"{window.name}.npy",
        "event_image": [f"{window.name}_{i}.png" for i in range(window.frames)],
    }
    if window.pictures:
        media |= {"video_data": window.name, "mp4_data": f"{window.name}.mp4"}
    return {
        "id": f"{sequence}-{window.first:010d}-{window.last:010d}{suffix}",
        "split": window.split,
        **media,
        "window": {
            "start_us": window.start_us,
            "stop_us": window.stop_us,
            "events": window.last - window.first,
            "rectified": window.rectify_map is not None,
        },
        "conversations": [{"from": "human", "value": f"<event>\n{questions[number]}"}],
    }
