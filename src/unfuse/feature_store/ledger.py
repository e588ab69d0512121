"""How many bytes a store holds, known without looking at each entry, and one process at a time that changes it.

The file is locked while entries come and go, and empty meanwhile: whoever finds it empty after a kill counts again.
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
    """The file, held."""

    def __init__(self, descriptor: int):
        self._descriptor = descriptor

    def take(self) -> int | None:
        """The number of bytes, which from here on counts as unknown; None where it was."""
        text = os.pread(self._descriptor, 64, 0)
        os.ftruncate(self._descriptor, 0)
        return int(text) if text.isdigit() else None

    def give(self, total: int) -> None:
        """Makes it known."""
        os.pwrite(self._descriptor, str(total).encode(), 0)


@contextmanager
def locked(path: Path) -> Iterator[Ledger]:
    """Holds the file of that name.

    Raises:
        OSError: it cannot be made or locked, or another process does not let it go.
    """
    end = time.monotonic() + _WAIT_S
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            _lock(descriptor, end)
            if _is_at(descriptor, path):
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


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the locked file is still the one of that name: the folder may have been removed and made again."""
    held = os.fstat(descriptor)
    try:
        named = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino)
