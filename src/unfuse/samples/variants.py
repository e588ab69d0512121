"""Variants of a sample: other files with equal frames, one other square, or other content in every frame.

A variant has the id and the question of its sample, and frames of equal sizes: a cache that is keyed by anything but
the content takes it for the sample.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from unfuse.atomic_files import make_folder
from unfuse.errors import MediaError
from unfuse.events import EventStream, read_events, write_eventgpt_npy
from unfuse.samples.sample import Sample

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Frames = Sequence[NDArray[np.uint8]]
    Square = tuple[slice, slice]

_NO_MEDIA: Final[dict[str, Any]] = {
    "event_data": None, "window": None, "event_image": (), "video": None, "video_frames": None, "image": None,
    "frames": (),
}  # fmt: skip
_IGNORE_TAIL: Final = frozenset({".png", ".jpg", ".jpeg", ".h5", ".hdf5"})
"""Formats whose readers ignore bytes after the end."""
_MP4: Final = frozenset({".mp4", ".m4v", ".mov"})
_TAIL: Final = 16
"""Bytes that are appended."""
_SQUARES: Final = 28
"""Squares side by side on the shorter side of a frame."""
_GREY: Final = 127.5
_VISIBLE: Final = 8.0
"""Difference in brightness that a resize and the rounding to 8 bits show."""


def with_frames(sample: Sample, frames: Frames) -> Sample:
    """Return the sample with frames in memory, uint8 ``[H, W, 3]``, as its only media."""
    arrays = tuple(frame.copy() for frame in frames)
    for array in arrays:
        array.setflags(write=False)
    return replace(sample, **{**_NO_MEDIA, "frames": arrays})


def used_media(sample: Sample, media: str) -> Sample:
    """Return the sample with the medium that ``load`` used, and no other; see ``Loaded.media``."""
    fields = (media, "window") if media == "event_data" else (media,)
    return replace(sample, **{**_NO_MEDIA, **{name: getattr(sample, name) for name in fields}})


def equal_frames(one: Frames, other: Frames) -> bool:
    """Return whether two scenes have equal frames: number, sizes and pixels."""
    return len(one) == len(other) and all(
        a.shape == b.shape and (a == b).all() for a, b in zip(one, other, strict=True)
    )


def inverted(frames: Frames) -> list[NDArray[np.uint8]]:
    """Return frames in which every pixel has another value."""
    return [255 - frame for frame in frames]


def with_square(frames: Frames, index: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Return frames with one square of frame ``index`` made black or white, in the middle that no crop removes.

    The square has a 28th of the shorter side, so a resize to 28 pixels or more shows it.
    """
    changed = [frame.copy() for frame in frames]
    square = next(_middle_squares(frames[index], seed))
    changed[index][square] = 0 if changed[index][square].mean() > _GREY else 255
    return changed


def with_exchange(frames: Frames, index: int, seed: int = 0) -> list[NDArray[np.uint8]] | None:
    """Return frames with two squares of frame ``index`` exchanged: equal sum, mean and histogram.

    Return None if there are no two squares of clearly different brightness in the middle of the frame.
    """
    changed = [frame.copy() for frame in frames]
    frame, original = changed[index], frames[index]
    squares = list(_middle_squares(frame, seed))
    first = max(squares, key=lambda square: float(original[square].mean()))
    other = min(squares, key=lambda square: float(original[square].mean()))
    if original[first].mean() - original[other].mean() < _VISIBLE or _overlap(first, other):
        return None
    frame[first], frame[other] = original[other], original[first]
    return changed


def _overlap(one: Square, other: Square) -> bool:
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(one, other, strict=True))


def _middle_squares(frame: NDArray[np.uint8], seed: int) -> Iterator[Square]:
    """Yield a hundred squares in random order, from the middle third of the square that a central crop leaves."""
    import numpy as np

    height, width = frame.shape[:2]
    shorter = min(height, width)
    side = max(1, shorter // _SQUARES)
    rng = np.random.default_rng(seed)
    shifts = rng.integers(-(shorter // 6), shorter // 6 + 1, (2, 100))
    rows, columns = (
        np.clip(size // 2 + shift, 0, size - side) for size, shift in zip((height, width), shifts, strict=True)
    )
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        yield slice(row, row + side), slice(column, column + side)


def stream_of(sample: Sample) -> EventStream:
    """Return the events of a sample's recording, in its window."""
    if sample.event_data is None:
        raise MediaError(f"sample {sample.sample_id}", found="no recording", expected="event_data")
    return read_events(sample.event_data, window=sample.window)


def with_other_polarity(stream: EventStream) -> EventStream:
    """Return the stream with inverted polarities: frames and file have equal sizes."""
    return replace(stream, p=1 - stream.p)


def with_random_polarity(stream: EventStream, seed: int) -> EventStream:
    """Return the stream with random polarities, and another one of the last event, which every frame of it shows."""
    import numpy as np

    p = np.random.default_rng(seed).integers(0, 2, len(stream), dtype=np.uint8)
    p[-1:] = 1 - stream.p[-1:]
    return replace(stream, p=p)


def in_reverse(stream: EventStream) -> EventStream:
    """Return the events in reverse order at the same times."""
    return replace(stream, x=stream.x[::-1], y=stream.y[::-1], p=stream.p[::-1])


def is_rewritable(sample: Sample) -> bool:
    """Return whether ``SampleFiles.marked`` changes events of the sample, and with them every frame."""
    return sample.event_data is not None and sample.event_data.suffix == ".npy" and sample.window is None


@dataclass(slots=True)
class SampleFiles:
    """Writes variants of samples into new folders below a folder, under the names of the original files."""

    folder: Path
    _count: int = field(default=0, init=False)

    def recording(self, sample: Sample, stream: EventStream, *, folder: Path | None = None) -> Sample:
        """Write a stream as EventGPT's ``.npy``, and return the sample with it as the only media."""
        path = (folder or self.new_folder()) / f"{(sample.event_data or Path('scene')).stem}.npy"
        write_eventgpt_npy(path, stream)
        return replace(sample, **{**_NO_MEDIA, "event_data": path})

    def pictures(self, sample: Sample, frames: Frames, *, as_video: bool, folder: Path | None = None) -> Sample:
        """Write frames as PNG files, and return the sample with them as event frames or as a folder of a video."""
        from PIL import Image

        folder = folder or self.new_folder()
        paths = [folder / f"{index:03d}.png" for index in range(len(frames))]
        for path, frame in zip(paths, frames, strict=True):
            Image.fromarray(frame).save(path)
        media: dict[str, Any] = {"video_frames": folder} if as_video else {"event_image": tuple(paths)}
        return replace(sample, **{**_NO_MEDIA, **media})

    def copy(self, sample: Sample) -> Sample:
        """Copy all files: equal bytes at new paths."""
        return self._with_files(sample, shutil.copyfile)

    def marked(self, sample: Sample, seed: int) -> Sample:
        """Copy all files with other bytes that take as long to read, or equal bytes where the format allows none.

        In EventGPT's ``.npy`` the polarities change; pictures and videos get bytes at their end that no decoder shows.
        """
        if is_rewritable(sample):
            return self.recording(sample, with_random_polarity(stream_of(sample), seed))
        return self._with_files(sample, _copy_marked)

    def new_folder(self) -> Path:
        """Make a folder that no sample has used."""
        self._count += 1
        folder = self.folder / f"{self._count:03d}"
        make_folder(folder)
        return folder

    def _with_files(self, sample: Sample, copy: Callable[[Path, Path], object]) -> Sample:
        folder = self.new_folder()

        def copied(path: Path) -> Path:
            copy(path, folder / path.name)
            return folder / path.name

        singles = {name: getattr(sample, name) for name in ("event_data", "video", "image")}
        media: dict[str, Any] = {name: None if path is None else copied(path) for name, path in singles.items()}
        media["event_image"] = tuple(map(copied, sample.event_image))
        if sample.video_frames is not None:
            for path in sample.video_files:
                copied(path)
            media["video_frames"] = folder
        return replace(sample, **media)


def _copy_marked(source: Path, target: Path) -> None:
    with source.open("rb") as given, target.open("wb") as copied:
        shutil.copyfileobj(given, copied)
    if source.suffix.lower() in _IGNORE_TAIL:
        tail = secrets.token_bytes(_TAIL)
    elif source.suffix.lower() in _MP4:
        tail = _TAIL.to_bytes(4, "big") + b"free" + secrets.token_bytes(_TAIL - 8)  # a box that players skip
    else:
        return
    with target.open("ab") as file:
        file.write(tail)
