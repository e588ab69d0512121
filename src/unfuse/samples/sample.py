"""A sample: one scene in one or more media, and a question about it.

A sample names files; they are not read before ``load``. The adapter chooses the medium for its model.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from unfuse.errors import MediaError
from unfuse.events import TimeWindow
from unfuse.events.time_units import TimeUnit
from unfuse.samples.file_hash import file_sha256
from unfuse.samples.frame_files import IMAGE_SUFFIXES, frame_files

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    PathLike = str | os.PathLike[str]

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
    time_unit: TimeUnit | None = None
    """Unit of the times in a text, ``.npy`` or ``.npz`` file; None decides as ``read_events`` does."""
    event_image: tuple[Path, ...] = ()
    """Event frames as image files, in order."""
    video: Path | None = None
    """A video file."""
    video_frames: Path | None = None
    """A folder of a video's frames as image files, in the order of the numbers in their names."""
    image: Path | None = None
    frames: tuple[NDArray[np.uint8], ...] = ()
    """RGB arrays ``[H, W, 3]`` given in memory."""
    reference: str | None = None
    """Reference answer of the dataset, if any."""
    notes: tuple[str, ...] = ()
    """Parts of the row's chat that the model does not get, or that the row lacks."""

    @classmethod
    def from_events(cls, path: PathLike, question: str | None = None, *, window: TimeWindow | None = None) -> Self:
        """Return a sample of a recording in any format that ``read_events`` reads."""
        return cls(sample_id=Path(path).stem, question=question, event_data=Path(path), window=window)

    @classmethod
    def from_frames(cls, frames: Sequence[PathLike | NDArray[np.uint8]], question: str | None = None) -> Self:
        """Return a sample of event frames: image files, or RGB uint8 arrays ``[H, W, 3]``, in order.

        Raises:
            MediaError: no frames, both kinds mixed, or an array of another shape or dtype.
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
        """Return a sample of a video file, or of a folder of its frames."""
        video = Path(path)
        if video.is_dir():
            return cls(sample_id=video.name, question=question, video_frames=video)
        return cls(sample_id=video.stem, question=question, video=video)

    @classmethod
    def from_image(cls, path: PathLike, question: str | None = None) -> Self:
        """Return a sample of one image."""
        return cls(sample_id=Path(path).stem, question=question, image=Path(path))

    @classmethod
    def from_file(cls, path: PathLike, question: str | None = None) -> Self:
        """Return a sample of an image, a video or a folder of frames by name; other files are recordings of events."""
        file = Path(path)
        if file.is_dir() or file.suffix.lower() in _VIDEOS:
            return cls.from_video(file, question)
        return (
            cls.from_image(file, question) if file.suffix.lower() in IMAGE_SUFFIXES else cls.from_events(file, question)
        )

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that the sample names."""
        single = [path for path in (self.event_data, self.video, self.image) if path is not None]
        return (*single, *self.event_image, *self.video_files)

    @property
    def video_files(self) -> tuple[Path, ...]:
        """Frames of the video folder, in the order of the numbers in their names."""
        return () if self.video_frames is None else frame_files(self.video_frames)

    @property
    def has_events(self) -> bool:
        """True if the sample has events, as a recording or as event frames."""
        return bool(self.frames or self.event_image or self.event_data is not None)


def media_key(sample: Sample) -> Hashable:
    """Return a key that samples of the same media share."""
    files = (sample.event_data, sample.event_image, sample.video, sample.video_frames, sample.image)
    # Samples of text alone share nothing.
    own = sample.sample_id if not any(files) and not sample.frames else None
    return (*files, sample.window, sample.time_unit, tuple(id(frame) for frame in sample.frames), own)


def media_sha256(files: Sequence[Path], representation: str, window: TimeWindow | None = None) -> str:
    """Return the hash of a model's input: the files' bytes, the window, and the representation."""
    digest = hashlib.sha256(f"{representation} {window}\n".encode())
    for path in files:
        digest.update(file_sha256(path).encode() + b"\n")
    return digest.hexdigest()


def frames_sha256(frames: Sequence[NDArray[np.uint8]]) -> str:
    """Return the hash of frames given in memory."""
    digest = hashlib.sha256(b"frames in memory\n")
    for frame in frames:
        digest.update(f"{frame.shape}\n".encode() + frame.tobytes())
    return digest.hexdigest()


def _checked_frame(frame: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
    import numpy as np

    array = np.array(frame)
    if array.ndim != 3 or array.shape[-1] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise MediaError(f"frame {index}", found=f"{array.dtype} {list(array.shape)}", expected="uint8 [H, W, 3]")
    array.setflags(write=False)
    return array
