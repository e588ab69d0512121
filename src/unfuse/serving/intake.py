"""Where uploads lie while they are read: a private folder, names of our own, gone as soon as the frames exist.

Of what a client calls a file, only what is printable is kept, and only to be shown.
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
    """By what is in them: the same bytes are the same scene."""
    name: str
    """To be shown, never to be opened."""
    num_bytes: int
    paths: tuple[Path, ...]

    def discard(self) -> None:
        """Removes the files."""
        for path in self.paths:
            path.unlink(missing_ok=True)


class Intake:
    """The private folder of one server. ``close`` removes it."""

    def __init__(self) -> None:
        _sweep(Path(tempfile.gettempdir()))
        self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock: int | None = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def keep(self, files: Sequence[IO[bytes]], name: str) -> Upload:
        """Writes files of one scene; whoever takes the upload discards it. Blocks while it writes."""
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
        return Upload(scene_id=scene_id(digests), name=shown_name(name), num_bytes=size, paths=tuple(paths))

    def close(self) -> None:
        """Removes the folder and what is in it; a second call does nothing."""
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def scene_id(digests: Sequence[str]) -> str:
    """The name of a scene by the SHA-256 of its files."""
    together = digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
    return f"scene-{together[:40]}"


def shown_name(name: str) -> str:
    """A client's name for a file as it may be shown."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(c for c in last if c.isprintable())[:_NAME_LENGTH] or "upload"


def _sweep(folder: Path) -> None:
    """Removes what servers left that were killed: their locks are gone with them."""
    for place in folder.glob(f"{_PREFIX}*"):
        lock = place / _LOCK
        with contextlib.suppress(OSError):
            about = place.lstat()
            # One that is being made may not be locked yet.
            if (
                not stat.S_ISDIR(about.st_mode)
                or about.st_uid != os.getuid()
                or time.time() - about.st_mtime < _YOUNG_S
            ):
                continue
            descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(place, ignore_errors=True)
            finally:
                os.close(descriptor)
