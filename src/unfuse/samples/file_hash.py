"""Hash of a file's bytes, read again unless the file is certainly as it was.

Within a process, the hash of an unchanged file is cached by device, inode, size and both times in nanoseconds, of the
file that was opened and not of its name. Three cases are never cached, because their times may repeat: a file written
just now, a file that changed while it was read, and any file after the clock was set back.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Final

from unfuse.errors import FileAccessError

_RECENT_NS: Final = 2_000_000_000
"""Resolution of the coarsest file system clock in use (FAT, two seconds)."""
_CLOCK_NS: Final = 100_000_000
"""Steps of the clock up to this size count as adjustments of its rate."""
_MAX_CACHED: Final = 65_536

_Identity = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class _Cached:
    identity: _Identity
    clock_ns: int
    """Wall clock minus monotonic clock when the file was read."""
    sha256: str


_cached: dict[Path, _Cached] = {}


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes.

    Raises:
        FileAccessError: the file is missing or unreadable.
    """
    try:
        with path.open("rb") as file:
            return _sha256(path, file)
    except OSError as error:
        raise FileAccessError(str(path), found=error.strerror or error, expected="a readable file") from None


def _sha256(path: Path, file: BufferedReader) -> str:
    identity, clock_ns = _identity(file), time.time_ns() - time.monotonic_ns()
    cached = _cached.get(path)
    if cached is not None and cached.identity == identity and clock_ns > cached.clock_ns - _CLOCK_NS:
        return cached.sha256
    settled = time.time_ns() - max(identity[-2:]) >= _RECENT_NS
    found = hashlib.file_digest(file, "sha256").hexdigest()
    if settled and _identity(file) == identity:
        if len(_cached) >= _MAX_CACHED:
            _cached.clear()
        _cached[path] = _Cached(identity, clock_ns, found)
    return found


def _identity(file: BufferedReader) -> _Identity:
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
