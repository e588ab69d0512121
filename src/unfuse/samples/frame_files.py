"""Find the pictures of a folder, in the order of the numbers in their names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

IMAGE_SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
_DIGITS: Final = re.compile(r"([0-9]+)")


def frame_files(folder: Path, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> tuple[Path, ...]:
    """Return the pictures of a folder in natural order; empty without such a folder.

    Hidden files are left out: macOS writes a ``._`` file beside each picture on foreign disks.
    """
    found = (path for path in folder.glob("*") if path.suffix.lower() in suffixes and not path.name.startswith("."))
    return tuple(sorted(found, key=natural_key))


def natural_key(path: Path) -> tuple[list[str | int], str]:
    """Return a key that orders ``frame2.png`` before ``frame10.png``; equal numbers are ordered by name."""
    parts = _DIGITS.split(path.stem.casefold())
    return [int(part) if number % 2 else part for number, part in enumerate(parts)], path.name
