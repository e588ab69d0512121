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


def read_image(path: Path) -> NDArray[np.uint8]:
    """Decode one image to a read-only uint8 ``[H, W, 3]``.

    Raises:
        FileAccessError: no such file.
        MediaError: not an image, damaged, or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.width * image.height > _MAX_PIXELS:
                    raise MediaError(
                        str(path),
                        found=f"{image.width} x {image.height} pixels",
                        expected=f"at most {_MAX_PIXELS}",
                    )
                array = np.array(image.convert("RGB"))
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
        struct.error,
        zlib.error,
    ) as error:
        raise MediaError(str(path), found=f"no readable image ({error})", expected="an undamaged PNG or JPEG") from None
    array.setflags(write=False)
    return array
