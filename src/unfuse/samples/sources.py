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
from unfuse.events.time_units import TimeUnit
from unfuse.samples.frame_files import frame_files

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
    notes: tuple[str, ...] = ()
    """Decisions about the clocks."""

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
    time_unit: TimeUnit | None = None
    """Unit of the times, as for ``read_events``."""

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
        return read_events(self.events, time_unit=self.time_unit)

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
            DatasetError: the numbers of times and images differ, a time is no number, or the clocks of events and
                images differ.
        """
        if self.folder is None:
            return Camera((), ())
        files = next((found for name in _PICTURES if (found := frame_files(self.folder / name))), ())
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
        return self._aligned(files, [int(word) for word in words], timestamps)

    def _aligned(self, files: tuple[Path, ...], times: list[int], timestamps: Path) -> Camera:
        """Return the camera with times on the clock of the events; converted recordings hold t_offset in them."""
        first, last = self.facts["span"] or (0, -1)
        offset = int(self.facts["t_offset"])
        for shift in (offset, 0):
            if any(first <= time - shift <= last for time in times):
                added = f"{self.name}: the event times include t_offset, so it is not subtracted from the pictures'"
                return Camera(files, tuple(time - shift for time in times), (added,) if shift != offset else ())
        if last < first:
            return Camera(files, tuple(time - offset for time in times))
        raise DatasetError(
            str(timestamps),
            found=f"0 of {len(times)} pictures fall into a window; clocks differ by "
            f"{abs(times[0] - offset - first) / 1e6:.0f} s",
            expected=f"times between {first + offset} and {last + offset} us",
            fix="correct the times or events.h5's t_offset, or move the folder images away to do without pictures",
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Decisions of the readers."""
        return (*self.camera.notes, *(() if self.is_dsec else self.stream.notes))


def find_recordings(source: Path, time_unit: TimeUnit | None = None) -> list[Recording]:
    """Return one event file, one DSEC sequence, or all sequences below a folder, in the order of their names.

    Args:
        source: file or folder.
        time_unit: unit of the times of an event file, as for ``read_events``.

    Raises:
        DatasetError: there is no such recording.
    """
    if source.is_file():
        return [Recording(_name(source.stem), "test", source, time_unit=time_unit)]
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
