"""A file with the total size of a store, so that no write has to add up all entries, and its lock.

A process that changes entries holds the lock. The file is empty meanwhile: after a kill it stays empty, and the next
process adds up all entries.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_WAIT_S: Final = 10.0
_POLL_S: Final = 0.002


class Ledger:
    """The locked file."""

    def __init__(self, descriptor: int):
        self._descriptor = descriptor

    def read_and_clear(self) -> int | None:
        """Return the total in bytes, or None if it is unknown; mark it as unknown until ``write``."""
        text = os.pread(self._descriptor, 64, 0)
        os.ftruncate(self._descriptor, 0)
        return int(text) if text.isdigit() else None

    def write(self, total: int) -> None:
        """Write the total in bytes."""
        os.pwrite(self._descriptor, str(total).encode(), 0)


@contextmanager
def locked(path: Path) -> Iterator[Ledger]:
    """Lock the file while the body runs; create it if it is missing.

    Raises:
        OSError: the file cannot be made or locked, or another process holds it for too long.
    """
    end = time.monotonic() + _WAIT_S
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            _lock(descriptor, end)
            if _has_name(descriptor, path):
                yield Ledger(descriptor)
                return
        finally:
            os.close(descriptor)


def _lock(descriptor: int, end: float) -> None:
    import fcntl  # POSIX only; the package must import elsewhere too

    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise TimeoutError(errno.ETIMEDOUT, "another process holds the store's lock") from None
            time.sleep(_POLL_S)


def _has_name(descriptor: int, path: Path) -> bool:
    """Return whether the locked file still has that name: the folder may have been removed and made again."""
    opened = os.fstat(descriptor)
    try:
        named = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (opened.st_dev, opened.st_ino) == (named.st_dev, named.st_ino)
