"""Locks between processes. A lock ends with its process, so a killed process leaves none behind."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

_POLL_S: Final = 0.002


class LockedError(Exception):
    """Another process holds the lock."""


class FileLock:
    """Advisory lock of a file, which is created if it is missing; exclusive unless shared. A context manager."""

    def __init__(self, path: Path, *, wait_s: float = 0.0, may_share: bool = False):
        """Take the lock.

        Args:
            path: of the lock file; it is never a link.
            wait_s: time to wait for another process.
            may_share: share the lock with processes that share it already.

        Raises:
            LockedError: another process still holds it.
            OSError: the file cannot be made or locked.
        """
        self.path = path
        end = time.monotonic() + wait_s
        while True:
            self._descriptor: int | None = _open(path)
            try:
                _lock(self._descriptor, end, may_share=may_share)
                if _has_name(self._descriptor, path):
                    return
            except BaseException:
                self.release()
                raise
            # The process before removed the file, or the folder was removed and made again.
            self.release()

    @property
    def descriptor(self) -> int:
        """Descriptor of the locked file, open for reading and writing."""
        assert self._descriptor is not None, "the lock is released"
        return self._descriptor

    def is_exclusive(self) -> bool:
        """Return whether no other process holds the lock, which is exclusive then."""
        import fcntl

        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def share(self) -> None:
        """Let other processes share the lock."""
        import fcntl

        fcntl.flock(self.descriptor, fcntl.LOCK_SH)

    def remove(self) -> None:
        """Release the lock, and remove its file if nobody shares it; a process that waits for it makes another file."""
        with suppress(OSError):
            if self.is_exclusive():
                self.path.unlink()
        self.release()

    def release(self) -> None:
        """Release the lock; a second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        with suppress(FileNotFoundError):
            return os.open(path, flags)
        with suppress(FileExistsError):
            descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
            os.fchmod(descriptor, 0o600)  # whatever the umask is
            return descriptor


def _lock(descriptor: int, end: float, *, may_share: bool) -> None:
    import fcntl  # POSIX only; the package must import elsewhere too, to read runs

    while True:
        for kind in (fcntl.LOCK_EX, fcntl.LOCK_SH) if may_share else (fcntl.LOCK_EX,):
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                return
        if time.monotonic() >= end:
            raise LockedError
        time.sleep(_POLL_S)


def _has_name(descriptor: int, path: Path) -> bool:
    """Return whether the locked file still has its name."""
    opened = os.fstat(descriptor)
    try:
        named = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (opened.st_dev, opened.st_ino) == (named.st_dev, named.st_ino)
