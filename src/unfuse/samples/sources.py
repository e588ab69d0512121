"""Find recordings for a dataset: DSEC sequences with their camera images, or event files of any format.

DSEC's layout (dsec.ifi.uzh.ch/data-format)::

    <sequence>/events/left/events.h5
    <sequence>/events/left/rectify_map.h5        if events are to be rectified
    <sequence>/images/timestamps.txt             microseconds of the image clock, one a picture
    <sequence>/images/left/rectified/*.png       or distorted/
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from unfuse.errors import DatasetError, FileAccessError
from unfuse.events import EventStream, read_events
from unfuse.events.readers import decoder_client

_HDF5: Final = b"\x89HDF\r\n\x1a\n"
_SPLITS: Final = ("train", "test", "val")
_PICTURES: Final = ("images/left/rectified", "images/left/distorted", "images/rectified", "images/distorted")
_TIMESTAMPS: Final = ("images/timestamps.txt", "images/left/timestamps.txt")


@dataclass(frozen=True, slots=True)
class Camera:
    """Images of the frame camera beside the event camera, in order."""

    files: tuple[Path, ...]
    times_us: tuple[int, ...]
    """Times on the clock of the events."""

    def between(self, start_us: int, stop_us: int) -> tuple[Path, ...]:
        """Return the images taken in ``[start, stop)``."""
        return tuple(f for f, t in zip(self.files, self.times_us, strict=True) if start_us <= t < stop_us)

    @property
    def rate(self) -> int:
        """Images per second, at least 1."""
        if len(self.times_us) < 2:
            return 1
        gaps = sorted(b - a for a, b in zip(self.times_us, self.times_us[1:], strict=False))
        return max(1, round(1e6 / max(gaps[len(gaps) // 2], 1)))


@dataclass(frozen=True)
class Recording:
    """One event file, read on demand."""

    name: str
    """Name of its folder below each kind of media."""
    split: str
    events: Path
    folder: Path | None = None
    """Folder of the sequence, if the recording is one."""

    @cached_property
    def is_dsec(self) -> bool:
        """True if windows can be read without the rest of the recording."""
        try:
            with self.events.open("rb") as file:
                return file.read(len(_HDF5)) == _HDF5
        except OSError as error:
            raise FileAccessError(
                str(self.events), found=error.strerror or error, expected="a readable event file"
            ) from None

    @property
    def rectify_map(self) -> Path:
        """Path of the sequence's rectify map.

        Raises:
            DatasetError: the sequence has none.
        """
        path = self.events.with_name("rectify_map.h5")
        if self.folder is None or not path.is_file():
            raise DatasetError(str(path), found="no such file", expected="the sequence's rectify map")
        return path

    @cached_property
    def stream(self) -> EventStream:
        """All events, for formats without random access."""
        return read_events(self.events)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """``events``, ``span`` and ``t_offset``."""
        if self.is_dsec:
            return decoder_client.inspect(self.events)
        return {"events": len(self.stream), "span": [int(self.stream.t[0]), int(self.stream.t[-1])], "t_offset": 0}

    def indices(self, edges: Sequence[int]) -> list[int]:
        """Return the index of the first event at or after each time."""
        if self.is_dsec:
            return list(decoder_client.inspect(self.events, edges=edges)["indices"])
        return [int(index) for index in self.stream.t.searchsorted(list(edges), side="left")]

    def times(self, numbers: Sequence[int]) -> list[int]:
        """Return the time of each event, by its number."""
        if self.is_dsec:
            return list(decoder_client.inspect(self.events, numbers=numbers)["times"])
        return [int(self.stream.t[number]) for number in numbers]

    @cached_property
    def camera(self) -> Camera:
        """Images of the recording's frame camera, on the clock of the events; empty without images.

        Raises:
            DatasetError: the numbers of times and images differ, or a time is no number.
        """
        if self.folder is None:
            return Camera((), ())
        files = next((found for name in _PICTURES if (found := sorted((self.folder / name).glob("*.png")))), [])
        if not files:
            return Camera((), ())
        timestamps = next((self.folder / name for name in _TIMESTAMPS if (self.folder / name).is_file()), None)
        if timestamps is None:
            raise DatasetError(str(self.folder), found="pictures without times", expected=_TIMESTAMPS[0])
        words = timestamps.read_text(encoding="ascii", errors="replace").split()
        if len(words) != len(files) or not all(word.isdigit() for word in words):
            raise DatasetError(
                str(timestamps),
                found=f"{len(words)} times for {len(files)} pictures",
                expected="a whole number a picture",
            )
        offset = int(self.facts["t_offset"])
        return Camera(tuple(files), tuple(int(word) - offset for word in words))


def find_recordings(source: Path) -> list[Recording]:
    """Return one event file, one DSEC sequence, or all sequences below a folder, in the order of their names.

    Raises:
        DatasetError: there is no such recording.
    """
    if source.is_file():
        return [Recording(_name(source.stem), "test", source)]
    if not source.is_dir():
        raise DatasetError(str(source), found="no such file or folder", expected="a recording or a DSEC folder")
    found = sorted(source.glob("**/events/left/events.h5")) or sorted(source.glob("**/events.h5"))
    if not found:
        raise DatasetError(
            str(source), found="no events/left/events.h5 in it", expected="a DSEC folder, or the path of an event file"
        )
    recordings = [_sequence(path, source) for path in found]
    if len({recording.name for recording in recordings}) != len(recordings):
        raise DatasetError(str(source), found="two sequences of one name", expected="each once")
    return recordings


def _sequence(events: Path, source: Path) -> Recording:
    folder = events.parents[2] if events.parent.name == "left" and events.parents[1].name == "events" else events.parent
    # "." is the working directory.
    resolved = folder.resolve()
    split = next((part for part in reversed(resolved.parent.parts[-2:]) if part in _SPLITS), "test")
    return Recording(_name(resolved.name), split, events, folder)


def _name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip(".") or "recording"
