"""One writer per run: an advisory lock on a file of the folder, gone with the process that holds it.

The lock file stays behind on purpose: were it removed, two processes could lock two files of one name.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from unfuse.errors import RunFolderError
from unfuse.runs.atomic import cannot_write

LOCK_FILE: Final = ".lock"


class FolderLock:
    """Holds a folder from construction to ``close``."""

    def __init__(self, folder: Path):
        """Takes the lock at once, or fails at once.

        Raises:
            RunFolderError: another process holds it, or the lock file cannot be made.
        """
        import fcntl  # POSIX only; the package must import elsewhere too, to read runs

        path = folder / LOCK_FILE
        try:
            self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise cannot_write(path, error) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            if isinstance(error, BlockingIOError):
                raise RunFolderError(
                    f"run folder {folder}",
                    found="another process writing to it",
                    expected="one writer",
                    fix="wait for it to end or give another --output",
                ) from error
            raise cannot_write(path, error) from error

    def close(self) -> None:
        """Lets the folder go; a second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
