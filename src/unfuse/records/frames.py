"""``frames/``: small pictures of the models' input: one strip of frames per medium, named by its hash.

Samples and models with one medium share a file. Strips are pictures for a report; nothing is measured on them. Names
come from records, and records may be foreign: only a hash is accepted.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from unfuse.atomic_files import make_folder
from unfuse.records.atomic import cannot_write, write_bytes_atomic

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

FRAMES_FOLDER: Final = "frames"
MAX_STRIPS: Final = 1000
"""Largest number of files of a run."""
MAX_FRAMES: Final = 8
"""Largest number of frames of a strip, evenly spaced."""
_HEIGHT: Final = 96
_WIDEST: Final = 3 * _HEIGHT
_GAP: Final = 2
_QUALITY: Final = 60
_MAX_BYTES: Final = 128 * 1024
_HASH: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Strip:
    """One medium's frames side by side, the earliest on the left, as a WebP file."""

    data: bytes
    width: int
    height: int


class FrameStore:
    """The folder of strips, created by the first ``write``."""

    def __init__(self, path: Path):
        self.path = path

    def holds(self, media_sha256: str | None) -> bool:
        """Return whether there is a strip of this medium."""
        path = self._path(media_sha256)
        return path is not None and path.is_file()

    @property
    def full(self) -> bool:
        """True if the folder holds the maximum number of strips."""
        return sum(1 for _ in self.path.glob("*.webp")) >= MAX_STRIPS if self.path.is_dir() else False

    def write(self, media_sha256: str, frames: Sequence[NDArray[np.uint8]]) -> None:
        """Write a strip of RGB frames ``[H, W, 3]``, in order.

        Raises:
            RunFolderError: it cannot be written.
        """
        path = self._path(media_sha256)
        if path is None or not frames:
            return
        try:
            make_folder(self.path)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        file = io.BytesIO()
        _strip(frames).save(file, "WEBP", quality=_QUALITY)
        write_bytes_atomic(path, file.getvalue())

    def copy_from(self, other: FrameStore) -> None:
        """Copy the strips of another folder.

        Raises:
            RunFolderError: one cannot be read or written.
        """
        for strip in sorted(other.path.glob("*.webp")):
            try:
                make_folder(self.path)
                data = strip.read_bytes()
            except OSError as error:
                raise cannot_write(self.path, error) from error
            write_bytes_atomic(self.path / strip.name, data)

    def read(self, media_sha256: str | None) -> Strip | None:
        """Read the strip of a medium; None if there is none, or if its file is no small WebP file."""
        from PIL import Image, UnidentifiedImageError

        path = self._path(media_sha256)
        if path is None:
            return None
        try:
            if path.stat().st_size > _MAX_BYTES:
                return None
            data = path.read_bytes()
            with Image.open(io.BytesIO(data), formats=["WEBP"]) as picture:
                return Strip(data=data, width=picture.width, height=picture.height)
        except (OSError, UnidentifiedImageError, ValueError):
            return None

    def _path(self, media_sha256: str | None) -> Path | None:
        if media_sha256 is None or not _HASH.fullmatch(media_sha256):
            return None
        return self.path / f"{media_sha256}.webp"


def frames_of(run: Path) -> FrameStore:
    """Return the strips of a run: in its folder, or beside the folder if the run is part of a comparison."""
    own = run / FRAMES_FOLDER
    return FrameStore(own if own.is_dir() else run.parent / FRAMES_FOLDER)


def _strip(frames: Sequence[NDArray[np.uint8]]) -> Image.Image:
    from PIL import Image

    count = min(len(frames), MAX_FRAMES)
    chosen = [frames[i * len(frames) // count] for i in range(count)]
    small = []
    for frame in chosen:
        height, width = frame.shape[:2]
        size = (min(max(round(width * _HEIGHT / height), 1), _WIDEST), _HEIGHT)
        # A box filter weighs every event: lines of events stay, single noise events fade.
        small.append(Image.fromarray(frame).resize(size, Image.Resampling.BOX))
    strip = Image.new("RGB", (sum(each.width + _GAP for each in small) - _GAP, _HEIGHT), (127, 127, 127))
    left = 0
    for each in small:
        strip.paste(each, (left, 0))
        left += each.width + _GAP
    return strip
