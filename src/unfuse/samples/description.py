"""Describe a dataset folder: counts, durations, event rates, sizes, and a contact sheet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unfuse.events import event_frames, read_events
from unfuse.samples.dataset import read_dataset
from unfuse.samples.media import read_image

_TILE: Final = (160, 120)
_COLUMNS: Final = 6
_TILES: Final = 12
_EVENT_FRAMES: Final = 5


@dataclass(frozen=True, slots=True)
class RecordingStatistics:
    """The events of one sample."""

    sample_id: str
    events: int
    duration_us: int
    brighter: int
    """Events of polarity 1."""
    size: tuple[int, int]
    """(width, height) that the events reach."""

    @property
    def rate(self) -> float:
        """Events per second."""
        return self.events / (max(self.duration_us, 1) / 1e6)


@dataclass(frozen=True, slots=True)
class DatasetDescription:
    """Statistics of a folder, read once completely."""

    folder: Path
    samples: int
    questions: int
    """Number of different questions."""
    references: int
    notes: tuple[str, ...]
    """``Dataset.notes``."""
    with_frames: int
    with_video: int
    file_bytes: dict[str, int]
    """Size by kind of media."""
    recordings: tuple[RecordingStatistics, ...]
    thumbnails: tuple[NDArray[np.uint8], ...]
    """Middle event frame of samples spread over the set, RGB uint8."""


def describe_dataset(folder: str | Path) -> DatasetDescription:
    """Read every recording of a folder, one at a time.

    Raises:
        InputError: the first defect; ``find_defects`` returns all.
    """
    data = read_dataset(folder)
    count = len(data.samples)
    chosen = {round(i * (count - 1) / max(min(count, _TILES) - 1, 1)) for i in range(min(count, _TILES))}
    recordings, thumbnails, seen = [], [], set()
    sizes = dict.fromkeys(("event_npy", "event_image", "video", "mp4"), 0)
    for number, sample in enumerate(data.samples):
        frame = None
        if sample.event_data is not None and (sample.event_data not in seen or number in chosen):
            stream = read_events(sample.event_data, window=sample.window, time_unit=sample.time_unit)
            if sample.event_data not in seen:
                sizes["event_npy"] += sample.event_data.stat().st_size
                reach = int(stream.x.max()) + 1, int(stream.y.max()) + 1
                ones = int(stream.p.sum())
                recordings.append(RecordingStatistics(sample.sample_id, len(stream), stream.duration_us, ones, reach))
            if number in chosen and not sample.event_image and len(stream) >= _EVENT_FRAMES:
                frame = event_frames(stream, _EVENT_FRAMES)[_EVENT_FRAMES // 2]
            seen.add(sample.event_data)
        if number in chosen and sample.event_image:
            frame = read_image(sample.event_image[len(sample.event_image) // 2])
        if frame is not None:
            thumbnails.append(frame)
        sizes["event_image"] += _new_bytes(sample.event_image, seen)
        sizes["video"] += _new_bytes(sample.video_files, seen)
        sizes["mp4"] += _new_bytes((sample.video,) if sample.video else (), seen)
    return DatasetDescription(
        folder=Path(folder),
        samples=count,
        questions=len({sample.question for sample in data.samples}),
        references=sum(sample.reference is not None for sample in data.samples),
        notes=data.notes,
        with_frames=sum(bool(sample.event_image) for sample in data.samples),
        with_video=sum(bool(sample.video or sample.video_frames) for sample in data.samples),
        file_bytes=sizes,
        recordings=tuple(recordings),
        thumbnails=tuple(thumbnails),
    )


def contact_sheet(described: DatasetDescription) -> NDArray[np.uint8]:
    """Return the thumbnails side by side, RGB uint8 ``[H, W, 3]``, with grey between them."""
    width, height = _TILE
    columns = max(min(_COLUMNS, len(described.thumbnails)), 1)
    rows = max(-(-len(described.thumbnails) // columns), 1)
    sheet = np.full((rows * (height + 4) + 4, columns * (width + 4) + 4, 3), 128, np.uint8)
    for number, frame in enumerate(described.thumbnails):
        top, left = number // columns * (height + 4) + 4, number % columns * (width + 4) + 4
        tile = Image.fromarray(frame).resize(_TILE, Image.Resampling.BOX)
        sheet[top : top + height, left : left + width] = np.asarray(tile)
    return sheet


def _new_bytes(paths: tuple[Path, ...], seen: set[Path]) -> int:
    new = [path for path in paths if path not in seen]
    seen.update(new)
    return sum(path.stat().st_size for path in new)
