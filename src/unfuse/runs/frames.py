"""``frames/``: what the models were shown, small: one strip of frames a medium, by the medium's hash.

Samples and models that were shown the same share a file. Strips are for looking at, in a report; nothing is measured
on them. Names come from records, which strangers may have written: only a hash is one.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from unfuse.runs.atomic import cannot_write, write_bytes_atomic

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

FRAMES_FOLDER: Final = "frames"
MAX_STRIPS: Final = 1000
"""Files a run keeps at most."""
MAX_FRAMES: Final = 8
"""Frames of a strip at most, evenly spaced."""
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
    """The folder of strips. Made at the first ``write``."""

    def __init__(self, path: Path):
        self.path = path

    def holds(self, media_sha256: str | None) -> bool:
        """Whether there is a strip of this medium."""
        place = self._place(media_sha256)
        return place is not None and place.is_file()

    @property
    def full(self) -> bool:
        """Whether the folder holds as many strips as one may."""
        return sum(1 for _ in self.path.glob("*.webp")) >= MAX_STRIPS if self.path.is_dir() else False

    def write(self, media_sha256: str, frames: Sequence[NDArray[np.uint8]]) -> None:
        """Keeps a strip of RGB frames ``[H, W, 3]``, in order.

        Raises:
            RunFolderError: it cannot be written.
        """
        place = self._place(media_sha256)
        if place is None or not frames:
            return
        try:
            self.path.mkdir(exist_ok=True)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        file = io.BytesIO()
        _strip(frames).save(file, "WEBP", quality=_QUALITY)
        write_bytes_atomic(place, file.getvalue())

    def take_over(self, other: FrameStore) -> None:
        """Copies the strips of another store.

        Raises:
            RunFolderError: one cannot be read or written.
        """
        for strip in sorted(other.path.glob("*.webp")):
            try:
                self.path.mkdir(exist_ok=True)
                data = strip.read_bytes()
            except OSError as error:
                raise cannot_write(self.path, error) from error
            write_bytes_atomic(self.path / strip.name, data)

    def read(self, media_sha256: str | None) -> Strip | None:
        """The strip of a medium; None where there is none, or what lies there is no small WebP file."""
        from PIL import Image, UnidentifiedImageError

        place = self._place(media_sha256)
        if place is None:
            return None
        try:
            if place.stat().st_size > _MAX_BYTES:
                return None
            data = place.read_bytes()
            with Image.open(io.BytesIO(data), formats=["WEBP"]) as picture:
                return Strip(data=data, width=picture.width, height=picture.height)
        except (OSError, UnidentifiedImageError, ValueError):
            return None

    def _place(self, media_sha256: str | None) -> Path | None:
        if media_sha256 is None or not _HASH.fullmatch(media_sha256):
            return None
        return self.path / f"{media_sha256}.webp"


def frames_of(run: Path) -> FrameStore:
    """Where a run's strips lie: in its folder, or beside it where it is part of a comparison."""
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
        # A box weighs every event: lines of them stay, single ones of noise fade.
        small.append(Image.fromarray(frame).resize(size, Image.Resampling.BOX))
    strip = Image.new("RGB", (sum(each.width + _GAP for each in small) - _GAP, _HEIGHT), (127, 127, 127))
    left = 0
    for each in small:
        strip.paste(each, (left, 0))
        left += each.width + _GAP
    return strip
