"""Frames to CLIP's pixel values, by compiled loops that give what the checkpoint's image processor gives.

Whether they do is not believed but tried, each time a processor is taken over. One that asks for something else, or a
picture that is not RGB, is left to the processor itself.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from threading import Lock
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unfuse.adapters.resample import bicubic_axis, resize_crop

_TRIALS: Final = ((48, 64), (57, 41), (480, 640))
"""Height and width of the pictures on which the two are compared."""


_ONLY_HERE: Final = 2
"""What ``sys.getrefcount`` says of an array that one variable holds: that, and its own argument."""


class ClipPixels:
    """A CLIP image processor, faster."""

    def __init__(self, processor: Any):
        """Takes over a processor.

        Args:
            processor: a ``CLIPImageProcessorPil``.
        """
        self._processor = processor
        self._edge, self._size = _plan(processor)
        self._last: NDArray[np.float32] | None = None
        self._lock = Lock()
        self._values = self._table() if self._edge else np.empty((3, 0), np.float32)
        if self._edge and not all(map(self._agrees, _TRIALS)):
            self._edge = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """That the processor itself is used, where it is."""
        return () if self._edge else (f"pixels by {type(self._processor).__name__}: its settings have no faster way",)

    def __call__(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """RGB uint8 ``[H, W, 3]`` each, of any sizes, to float32 ``[F, 3, h, w]``."""
        if not self._edge or not all(map(self._takes, frames)):
            return self._slowly(frames)
        pixels = self._memory(len(frames))
        for frame, out in zip(frames, pixels, strict=True):
            self._one(frame, out)
        return pixels

    def _memory(self, count: int) -> NDArray[np.float32]:
        """The last result's memory if nobody holds that any more: new pages cost half as much as what fills them."""
        with self._lock:
            kept, self._last = self._last, None
            free = kept is not None and len(kept) == count and sys.getrefcount(kept) == _ONLY_HERE
            pixels = kept if free and kept is not None else np.empty((count, 3, *self._size), np.float32)
            self._last = pixels
        return pixels

    def _slowly(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        pixels: NDArray[np.float32] = self._processor(list(frames), return_tensors="np")["pixel_values"]
        return np.ascontiguousarray(pixels)

    def _takes(self, frame: NDArray[np.uint8]) -> bool:
        """Not what the processor would take for channels first, nor what Pillow 13 resizes in the other order."""
        if (
            frame.dtype != np.uint8
            or frame.ndim != 3
            or frame.shape[2] != 3
            or frame.shape[0] <= 4
            or not frame.shape[1]
        ):
            return False
        (height, width), (rows, columns) = frame.shape[:2], self._resized(frame)
        return not (rows < height and height - rows > 2 * (width - columns))

    def _resized(self, frame: NDArray[np.uint8]) -> tuple[int, int]:
        height, width = frame.shape[:2]
        long = int(self._edge * max(height, width) / min(height, width))
        return (self._edge, long) if height <= width else (long, self._edge)

    def _one(self, frame: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
        (height, width), (rows, columns) = frame.shape[:2], self._resized(frame)
        top, left = (rows - self._size[0]) // 2, (columns - self._size[1]) // 2
        across = bicubic_axis(width, columns, left, self._size[1])
        down = bicubic_axis(height, rows, top, self._size[0])
        resize_crop(frame, across, down, self._values, out)

    def _table(self) -> NDArray[np.float32]:
        """What the processor makes of each value of each channel: of a picture that is neither resized nor cropped."""
        edge, (height, width) = self._edge, self._size
        picture = np.zeros((edge, edge, 3), np.uint8)
        top, left = (edge - height) // 2, (edge - width) // 2
        part = np.resize(np.arange(256, dtype=np.uint8), height * width).reshape(height, width)
        picture[top : top + height, left : left + width] = part[:, :, None]
        pixels = self._slowly([picture])[0].reshape(3, -1)
        return np.ascontiguousarray(pixels[:, :256], dtype=np.float32)

    def _agrees(self, shape: tuple[int, int]) -> bool:
        picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        return np.array_equal(self([picture]), self._slowly([picture]))


def _plan(processor: Any) -> tuple[int, tuple[int, int]]:
    """Shortest edge and crop size; an edge of 0 where the processor does anything but CLIP's four steps."""
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    size, crop = dict(getattr(processor, "size", None) or {}), dict(getattr(processor, "crop_size", None) or {})
    edge = size.get("shortest_edge") or 0
    height, width = crop.get("height") or 0, crop.get("width") or 0
    wanted = all(getattr(processor, step, False) for step in steps)
    bicubic = getattr(processor, "resample", None) == Image.Resampling.BICUBIC
    fits = 0 < height <= edge and 0 < width <= edge and height * width >= 256
    return (edge if wanted and bicubic and fits else 0), (height, width)
