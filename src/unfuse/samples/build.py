"""Split recordings into windows and write them as a folder of the instruction set.

The windows are planned first, from the times of events alone. Then every window is read, drawn and written separately,
in any process; windows of a DSEC recording are read by the process that writes them.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final

from unfuse.atomic_files import complete_file, make_folder
from unfuse.errors import DatasetError, InputError
from unfuse.events import EventStream, event_frames, write_eventgpt_npy
from unfuse.events.readers import decoder_client
from unfuse.events.rectify import read_rectify_map
from unfuse.samples.file_hash import file_sha256
from unfuse.samples.media import read_image
from unfuse.samples.sources import Recording
from unfuse.samples.video import write_frames
from unfuse.samples.writing import write_folder, write_picture
from unfuse.stages import DEFAULT_QUESTION

_UNITS: Final = {"s": 1_000_000, "ms": 1_000, "us": 1}


@dataclass(frozen=True, kw_only=True, slots=True)
class Windowing:
    """Length, stride and frames of the windows of a recording."""

    window_us: int | None = 1_000_000
    """Length in time; None if the length is a number of events."""
    events: int | None = None
    stride: int | None = None
    """Distance of the starts of two windows, in microseconds or events; None is the length."""
    frames: int = 5
    """Event frames per window."""
    rectify: bool = False
    """Whether events are moved to their positions in the rectified image; events outside it are dropped."""

    def __post_init__(self) -> None:
        if (self.window_us is None) == (self.events is None):
            raise InputError("window", found="both a time and a number of events", expected="one of the two")
        if self.length < 1:
            raise InputError("window", found=self.length, expected="at least 1")
        if self.step < 1:
            raise InputError("stride", found=self.step, expected="at least 1")
        if self.frames < 1:
            raise InputError("frames", found=self.frames, expected="at least 1")

    @property
    def length(self) -> int:
        """Length in microseconds or events."""
        return int(self.window_us or self.events or 0)

    @property
    def step(self) -> int:
        """Stride in the unit of ``length``."""
        return self.length if self.stride is None else self.stride


@dataclass(frozen=True, slots=True)
class Window:
    """One window of a recording: events ``first`` to ``last`` by their number."""

    name: str
    """Name of its media, below each kind's folder."""
    split: str
    start_us: int
    stop_us: int
    first: int
    last: int
    frames: int
    source: Path
    pictures: tuple[Path, ...]
    rate: int
    source_sha256: str
    """Hash of everything that the window is made of: the recording, the rectify map, and the pictures in the window."""
    rectify_map: Path | None = None
    stream: EventStream | None = None
    """Events of the window, if already read."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All windows, and the number of windows left out because they hold fewer events than frames."""

    windows: tuple[tuple[Recording, tuple[Window, ...]], ...]
    left_out: int

    @property
    def notes(self) -> tuple[str, ...]:
        """Decisions of the readers, and the pictures that no window holds."""
        notes: list[str] = []
        for recording, windows in self.windows:
            total = len(recording.camera.files)
            held = {picture for window in windows for picture in window.pictures}
            notes += recording.notes
            if len(held) < total:
                notes.append(f"{recording.name}: {len(held)} of {total} pictures fall into a window")
        return tuple(dict.fromkeys(notes))

    @property
    def count(self) -> int:
        """Number of windows to write."""
        return sum(len(windows) for _, windows in self.windows)


def parse_time(text: str) -> int:
    """Return the microseconds of "1s", "500ms", "50ms" or "250us".

    Raises:
        InputError: another text, or less than a microsecond.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|ms|us)", text.strip())
    value = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if value < 1 or value != round(value):
        raise InputError("time", found=repr(text), expected='a length such as "1s", "500ms" or "250us"')
    return round(value)


def plan(recordings: Sequence[Recording], windowing: Windowing, max_windows: int | None = None) -> Plan:
    """Find the complete windows of every recording.

    Args:
        recordings: recordings to split.
        windowing: length, stride and frames.
        max_windows: most windows of each recording, from the first.

    Raises:
        InputError: a recording cannot be read.
        DatasetError: there is no window.
    """
    parts, left_out = [], 0
    for recording in recordings:
        windows = list(islice(_windows(recording, windowing), max_windows))
        large = [window for window in windows if window.last - window.first >= windowing.frames]
        left_out += len(windows) - len(large)
        parts.append((recording, tuple(large)))
    found = Plan(tuple(parts), left_out)
    if not found.count:
        span = recordings[0].facts["span"]
        raise DatasetError(
            str(recordings[0].events),
            found=f"no window with events in {span[0]} to {span[1]} us" if span else "no events",
            expected=f"at least one of {windowing.length} {'us' if windowing.window_us else 'events'}",
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
    """Write a folder, or the missing files of an unfinished one.

    Args:
        out: a new folder, or an unfinished one of an equal plan.
        found: the windows.
        questions: questions about every window, one row each.
        workers: processes; 0 means one per core.
        done: called with the number of windows written.

    Raises:
        InputError: a window cannot be read, or the folder not written.
    """
    windows = [window for _, part in found.windows for window in part]
    entries = [_entry(window, questions, number) for window in windows for number in range(len(questions))]
    write_folder(out, entries, _tasks(found), write_window, workers=min(workers, len(windows)), done=done)


def write_window(out: Path, window: Window) -> None:
    """Write the missing media of one window; the events last."""
    target = out / "event_npy" / f"{window.name}.npy"
    if target.is_file():
        return
    stream = window.stream or decoder_client.decode_events(window.source, window.first, window.last)
    if window.rectify_map is not None:
        stream = read_rectify_map(window.rectify_map)(stream)
    folder = out / "event_image" / window.name
    for path in (target, folder, out / "mp4" / window.name):
        make_folder(path.parent)
    for number, frame in enumerate(event_frames(stream, window.frames)):
        write_picture(folder.with_name(f"{folder.name}_{number}.png"), frame)
    if window.pictures:
        stills = out / "video" / window.name
        make_folder(stills)
        for picture in window.pictures:
            with complete_file(stills / picture.name) as partial:
                shutil.copyfile(picture, partial)
        with complete_file(out / "mp4" / f"{window.name}.mp4") as partial:
            write_frames(partial, map(read_image, window.pictures), window.rate)
    write_eventgpt_npy(target, stream)


def _windows(recording: Recording, windowing: Windowing) -> Iterator[Window]:
    """Yield the windows in order; the last ends with or before the recording."""
    span = recording.facts["span"]
    if span is None:
        return
    if windowing.window_us is not None:
        # Whole milliseconds: a recording of 60 s has 60 windows of 1 s, although no event is exactly at its edges.
        begin, end = span[0] // 1000 * 1000, -(-(span[1] + 1) // 1000) * 1000
        edges = [
            (start, start + windowing.length) for start in range(begin, end - windowing.length + 1, windowing.step)
        ]
        flat = recording.indices([edge for pair in edges for edge in pair])
        indices = list(zip(flat[::2], flat[1::2], strict=True))
    else:
        indices = [
            (s, s + windowing.length)
            for s in range(0, recording.facts["events"] + 1 - windowing.length, windowing.step)
        ]
        flat = recording.times([number for first, last in indices for number in (first, last - 1)])
        edges = [(start, end + 1) for start, end in zip(flat[::2], flat[1::2], strict=True)]
    rectify_map = recording.rectify_map if windowing.rectify else None
    source_sha256 = _files_sha256([path for path in (recording.events, rectify_map) if path is not None])
    for number, ((start, stop), (first, last)) in enumerate(zip(edges, indices, strict=True)):
        pictures = recording.camera.between(start, stop)
        yield Window(
            name=f"{recording.name}/{number:06d}",
            split=recording.split,
            start_us=start,
            stop_us=stop,
            first=first,
            last=last,
            frames=windowing.frames,
            source=recording.events,
            pictures=pictures,
            rate=recording.camera.rate,
            source_sha256=_files_sha256(pictures, source_sha256),
            rectify_map=rectify_map,
        )


def _files_sha256(paths: Iterable[Path], before: str = "") -> str:
    """Return a hash of files and of the hash ``before``."""
    digests = [before, *(file_sha256(path) for path in paths)]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _tasks(found: Plan) -> Iterator[Window]:
    """Yield windows, with their events if already read."""
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
            "source_sha256": window.source_sha256,
        },
        "conversations": [{"from": "human", "value": f"<event>\n{questions[number]}"}],
    }
