"""Private folder for uploaded files; they are deleted as soon as their frames are read.

Files get random names. The printable characters of a client's file name are for display only.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

_PREFIX: Final = "unfuse-serve-"
_LOCK: Final = ".lock"
_BLOCK: Final = 1 << 20
_NAME_LENGTH: Final = 120
_YOUNG_S: Final = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """Files of one scene, in order."""

    scene_id: str
    """Hash of the contents: equal bytes are the same scene."""
    name: str
    """Name for display, never opened."""
    num_bytes: int
    paths: tuple[Path, ...]

    def discard(self) -> None:
        """Delete the files."""
        for path in self.paths:
            path.unlink(missing_ok=True)


class Intake:
    """The private folder of one server; ``close`` deletes it."""

    def __init__(self) -> None:
        _sweep(Path(tempfile.gettempdir()))
        self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock: int | None = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def save(self, files: Sequence[IO[bytes]], name: str) -> Upload:
        """Write the files of one scene; the caller discards the upload. Blocks while it writes."""
        paths: list[Path] = []
        digests = []
        size = 0
        try:
            for source in files:
                path = self._folder / secrets.token_hex(16)
                paths.append(path)
                digest = hashlib.sha256()
                with path.open("xb") as target:
                    while block := source.read(_BLOCK):
                        digest.update(block)
                        target.write(block)
                        size += len(block)
                digests.append(digest.hexdigest())
        except BaseException:
            for path in paths:
                path.unlink(missing_ok=True)
            raise
        return Upload(scene_id=scene_id(digests), name=display_name(name), num_bytes=size, paths=tuple(paths))

    def close(self) -> None:
        """Delete the folder with its files; a second call does nothing."""
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def scene_id(digests: Sequence[str]) -> str:
    """Return the ID of a scene from the SHA-256 of its files."""
    digest = digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
    return f"scene-{digest[:40]}"


def display_name(name: str) -> str:
    """Return a client's file name for display."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(c for c in last if c.isprintable())[:_NAME_LENGTH] or "upload"


def _sweep(folder: Path) -> None:
    """Delete the folders of killed servers: such a folder has no lock any more."""
    for old in folder.glob(f"{_PREFIX}*"):
        lock = old / _LOCK
        with contextlib.suppress(OSError):
            status = old.lstat()
            # A folder that is being created may not be locked yet.
            if (
                not stat.S_ISDIR(status.st_mode)
                or status.st_uid != os.getuid()
                or time.time() - status.st_mtime < _YOUNG_S
            ):
                continue
            descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(old, ignore_errors=True)
            finally:
                os.close(descriptor)
