"""A file with the total size of a store, so that no write has to add up all entries, and its lock.

A process that changes entries holds the lock. The file is empty meanwhile: after a kill it stays empty, and the next
process adds up all entries.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from unfuse.locks import FileLock, LockedError

_WAIT_S: Final = 10.0


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
    try:
        lock = FileLock(path, wait_s=_WAIT_S)
    except LockedError:
        raise TimeoutError(errno.ETIMEDOUT, "another process holds the store's lock") from None
    with lock:
        yield Ledger(lock.descriptor)
