"""Decode image files to RGB arrays."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from unfuse.errors import FileAccessError, MediaError

_MAX_PIXELS: Final = 64_000_000
"""Limit for crafted files: they claim gigabytes of pixels in a few kilobytes."""
_ORIENTATION: Final = 0x0112
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ALPHA: Final = frozenset({"RGBA", "RGBa", "LA", "La", "PA"})


def read_image(path: Path) -> NDArray[np.uint8]:
    """Decode one image to a read-only uint8 ``[H, W, 3]``, as a viewer shows it.

    The image is turned as its EXIF data say, transparent pixels show white, and 16-bit grey is scaled to 8 bits.

    Raises:
        FileAccessError: no such file.
        MediaError: not an image, damaged, too large, or of values without a known range.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow reports damaged metadata, which the pixels do not need
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.width * image.height > _MAX_PIXELS:
                    raise MediaError(
                        str(path),
                        found=f"{image.width} x {image.height} pixels",
                        expected=f"at most {_MAX_PIXELS}",
                    )
                array = _rgb(image, path)
    except FileNotFoundError:
        raise FileAccessError(str(path), found="no such file", expected="an image") from None
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
        OSError,
        SyntaxError,  # Pillow's word for a broken PNG chunk
        ValueError,
        EOFError,
        OverflowError,
        struct.error,
        zlib.error,
    ) as error:
        raise MediaError(str(path), found=f"no readable image ({error})", expected="an undamaged PNG or JPEG") from None
    except MemoryError:
        found, expected = "a picture that takes too much memory", "a smaller picture"
        raise MediaError(str(path), found=found, expected=expected) from None
    array.setflags(write=False)
    return array


def _rgb(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    image.load()
    orientation = _orientation(image)
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise MediaError(str(path), found=f"a picture of mode {image.mode}", expected="8 or 16 bits per value")
    if image.mode.startswith("I"):
        image = _grey(image)
    if image.mode in _ALPHA or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    if orientation is not None:
        image = image.transpose(orientation)
    return np.array(image.convert("RGB"))


def _grey(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey, rounded; Pillow's own conversion cuts values off at 255. PNG may name a transparent value."""
    values = np.asarray(image).astype(np.int64).clip(0, 65535)
    scaled = ((values * 255 + 32767) // 65535).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        scaled[values == transparent] = 255
    return Image.fromarray(scaled)


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """Return the turn that EXIF asks for; damaged EXIF data ask for none."""
    try:
        return _TURNS.get(int(image.getexif().get(_ORIENTATION) or 0))
    except (SyntaxError, ValueError, TypeError, LookupError, OSError, struct.error, EOFError):
        return None
