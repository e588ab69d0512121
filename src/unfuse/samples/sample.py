"""A sample: one scene in one or more media, and a question about it.

It names files; nothing is read until ``load``. Which medium a model takes is the adapter's choice.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from unfuse.errors import FileAccessError, MediaError
from unfuse.events import TimeWindow

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    PathLike = str | os.PathLike[str]

_PICTURES: Final = frozenset({".png", ".jpg", ".jpeg"})
_RECENT_NS: Final = 2_000_000_000
"""The coarsest clock of a file system in use (FAT, two seconds)."""
_VIDEOS: Final = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One scene and one question."""

    sample_id: str
    question: str | None = None
    """None or empty means the benchmark's default question."""
    event_data: Path | None = None
    """An event file."""
    window: TimeWindow | None = None
    """Part of the event file, in its own clock; None is all of it."""
    event_image: tuple[Path, ...] = ()
    """Event frames as image files, in order."""
    video: Path | None = None
    """A video file."""
    video_frames: Path | None = None
    """A folder of a video's frames as image files, ordered by name."""
    image: Path | None = None
    frames: tuple[NDArray[np.uint8], ...] = ()
    """RGB arrays ``[H, W, 3]`` given in memory."""
    reference: str | None = None
    """The dataset's own answer, where it has one."""

    @classmethod
    def from_events(cls, path: PathLike, question: str | None = None, *, window: TimeWindow | None = None) -> Self:
        """A recording in any format that ``read_events`` takes."""
        return cls(sample_id=Path(path).stem, question=question, event_data=Path(path), window=window)

    @classmethod
    def from_frames(cls, frames: Sequence[PathLike | NDArray[np.uint8]], question: str | None = None) -> Self:
        """Event frames: image files, or RGB uint8 arrays ``[H, W, 3]``, in order.

        Raises:
            MediaError: none, both kinds mixed, or an array of another shape or dtype.
        """
        if not len(frames):
            raise MediaError("frames", found="none", expected="at least one")
        paths = [Path(frame) for frame in frames if isinstance(frame, (str, os.PathLike))]
        if len(paths) == len(frames):
            return cls(sample_id=paths[0].stem, question=question, event_image=tuple(paths))
        if paths:
            raise MediaError("frames", found="paths and arrays mixed", expected="one kind")
        arrays = [
            _checked_frame(frame, i) for i, frame in enumerate(frames) if not isinstance(frame, (str, os.PathLike))
        ]
        return cls(sample_id="frames", question=question, frames=tuple(arrays))

    @classmethod
    def from_video(cls, path: PathLike, question: str | None = None) -> Self:
        """A video file, or a folder of its frames."""
        place = Path(path)
        if place.is_dir():
            return cls(sample_id=place.name, question=question, video_frames=place)
        return cls(sample_id=place.stem, question=question, video=place)

    @classmethod
    def from_image(cls, path: PathLike, question: str | None = None) -> Self:
        """One picture."""
        return cls(sample_id=Path(path).stem, question=question, image=Path(path))

    @classmethod
    def from_file(cls, path: PathLike, question: str | None = None) -> Self:
        """A picture, a video or a folder of its frames by their names; anything else is a recording of events."""
        place = Path(path)
        if place.is_dir() or place.suffix.lower() in _VIDEOS:
            return cls.from_video(place, question)
        return (
            cls.from_image(place, question) if place.suffix.lower() in _PICTURES else cls.from_events(place, question)
        )

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file the sample names."""
        single = [path for path in (self.event_data, self.video, self.image) if path is not None]
        return (*single, *self.event_image, *self.video_files)

    @property
    def video_files(self) -> tuple[Path, ...]:
        """Frames of the video folder, ordered by name."""
        if self.video_frames is None:
            return ()
        return tuple(sorted(path for path in self.video_frames.glob("*") if path.suffix.lower() in _PICTURES))

    @property
    def has_events(self) -> bool:
        """Whether there are events, as a recording or as frames of them."""
        return bool(self.frames or self.event_image or self.event_data is not None)


def media_sha256(files: Sequence[Path], representation: str, window: TimeWindow | None = None) -> str:
    """Hash of what a model is shown: the files' bytes, the window, and how they become frames."""
    digest = hashlib.sha256(f"{representation} {window}\n".encode())
    for path in files:
        digest.update(file_sha256(path).encode() + b"\n")
    return digest.hexdigest()


def frames_sha256(frames: Sequence[NDArray[np.uint8]]) -> str:
    """The same for frames given in memory."""
    digest = hashlib.sha256(b"frames in memory\n")
    for frame in frames:
        digest.update(f"{frame.shape}\n".encode() + frame.tobytes())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes; read once as long as the file stays the same.

    A file written just now may be written again within one tick of the file system's clock, so its hash is not kept.

    Raises:
        FileAccessError: it is missing or unreadable.
    """
    try:
        stat = path.stat()
        if time.time_ns() - stat.st_ctime_ns < _RECENT_NS:
            return _read_sha256(path)
        return _kept_sha256(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    except OSError as error:
        raise FileAccessError(str(path), found=error.strerror or error, expected="a readable file") from None


@lru_cache(maxsize=65536)
def _kept_sha256(path: Path, size: int, mtime_ns: int, ctime_ns: int, inode: int) -> str:
    return _read_sha256(path)


def _read_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked_frame(frame: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
    import numpy as np

    array = np.array(frame)
    if array.ndim != 3 or array.shape[-1] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise MediaError(f"frame {index}", found=f"{array.dtype} {list(array.shape)}", expected="uint8 [H, W, 3]")
    array.setflags(write=False)
    return array
