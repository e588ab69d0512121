"""Computes CLIP's pixel values by compiled loops, equal to those of the checkpoint's image processor.

A new ``ClipPixels`` compares its results with the processor's. The processor itself runs if its settings differ from
CLIP's, and for frames that are not RGB.
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
from unfuse.errors import MediaError

_TEST_SIZES: Final = ((48, 64), (57, 41), (480, 640))
"""Height and width of the images on which both are compared."""
_MAX_ASPECT: Final = 200
"""Longer over shorter side, as Qwen2-VL's processor has it."""
_UNSHARED: Final = 2
"""``sys.getrefcount`` of an array that one variable refers to: the variable and the function's argument."""


def require_aspect(frames: Sequence[NDArray[Any]]) -> None:
    """Refuse strips, which processors that scale the shorter side would enlarge to gigabytes.

    Raises:
        MediaError: a side of a frame ``[H, W, 3]`` is over ``_MAX_ASPECT`` times the other.
    """
    for frame in frames:
        height, width = frame.shape[:2]
        if max(height, width) > _MAX_ASPECT * min(height, width):
            raise MediaError(
                "picture", found=f"{width} x {height} pixels", expected=f"no side over {_MAX_ASPECT} times the other"
            )


class ClipPixels:
    """A faster CLIP image processor."""

    def __init__(self, processor: Any):
        """Compare the compiled loops with a processor.

        Args:
            processor: a ``CLIPImageProcessorPil``.
        """
        self._processor = processor
        self._edge, self._size = _clip_sizes(processor)
        self._last: NDArray[np.float32] | None = None
        self._lock = Lock()
        self._values = self._value_table() if self._edge else np.empty((3, 0), np.float32)
        if self._edge and not all(map(self._equals_processor, _TEST_SIZES)):
            self._edge = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for reports: whether the processor itself runs."""
        return () if self._edge else (f"pixels by {type(self._processor).__name__}: its settings have no faster way",)

    def __call__(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Convert RGB frames, uint8 ``[H, W, 3]`` of any sizes, to float32 ``[F, 3, h, w]``."""
        if not self._edge or not all(map(self._supports, frames)):
            require_aspect(frames)
            return self._by_processor(frames)
        pixels = self._output(len(frames))
        for frame, out in zip(frames, pixels, strict=True):
            self._convert(frame, out)
        return pixels

    def _output(self, count: int) -> NDArray[np.float32]:
        """Return the last result's memory if it is unused: allocating new pages costs half as much as filling them."""
        with self._lock:
            last, self._last = self._last, None
            unused = last is not None and len(last) == count and sys.getrefcount(last) == _UNSHARED
            pixels = last if unused and last is not None else np.empty((count, 3, *self._size), np.float32)
            self._last = pixels
        return pixels

    def _by_processor(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        # A frame of three rows could also be three channels.
        last = {"input_data_format": "channels_last"} if all(f.ndim == 3 and f.shape[2] == 3 for f in frames) else {}
        pixels: NDArray[np.float32] = self._processor(list(frames), return_tensors="np", **last)["pixel_values"]
        return np.ascontiguousarray(pixels)

    def _supports(self, frame: NDArray[np.uint8]) -> bool:
        """Return whether a frame is RGB with channels last, and Pillow 13 resizes it in the same order."""
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
            return False
        (height, width), (rows, columns) = frame.shape[:2], self._resized(frame)
        return not (rows < height and height - rows > 2 * (width - columns))

    def _resized(self, frame: NDArray[np.uint8]) -> tuple[int, int]:
        height, width = frame.shape[:2]
        long = int(self._edge * max(height, width) / min(height, width))
        return (self._edge, long) if height <= width else (long, self._edge)

    def _convert(self, frame: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
        (height, width), (rows, columns) = frame.shape[:2], self._resized(frame)
        top, left = (rows - self._size[0]) // 2, (columns - self._size[1]) // 2
        across = bicubic_axis(width, columns, left, self._size[1])
        down = bicubic_axis(height, rows, top, self._size[0])
        resize_crop(frame, across, down, self._values, out)

    def _value_table(self) -> NDArray[np.float32]:
        """Return the processor's result ``[3, 256]`` for each value of each channel, without resizing."""
        edge, (height, width) = self._edge, self._size
        picture = np.zeros((edge, edge, 3), np.uint8)
        top, left = (edge - height) // 2, (edge - width) // 2
        part = np.resize(np.arange(256, dtype=np.uint8), height * width).reshape(height, width)
        picture[top : top + height, left : left + width] = part[:, :, None]
        pixels = self._by_processor([picture])[0].reshape(3, -1)
        return np.ascontiguousarray(pixels[:, :256], dtype=np.float32)

    def _equals_processor(self, shape: tuple[int, int]) -> bool:
        picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        return np.array_equal(self([picture]), self._by_processor([picture]))


def _clip_sizes(processor: Any) -> tuple[int, tuple[int, int]]:
    """Return shortest edge and crop size; the edge is 0 if the processor's steps are not CLIP's."""
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    size, crop = dict(getattr(processor, "size", None) or {}), dict(getattr(processor, "crop_size", None) or {})
    edge = size.get("shortest_edge") or 0
    height, width = crop.get("height") or 0, crop.get("width") or 0
    wanted = all(getattr(processor, step, False) for step in steps)
    bicubic = getattr(processor, "resample", None) == Image.Resampling.BICUBIC
    fits = 0 < height <= edge and 0 < width <= edge and height * width >= 256
    return (edge if wanted and bicubic and fits else 0), (height, width)
