"""Entries of bytes in a folder, under names of 64 hexadecimal digits, within a bound.

::

    CACHEDIR.TAG                what the folder is, also to programs that make backups
    ledger                      how many bytes there are; locked by whoever changes that
    tmp/PID.RANDOM              being written
    ab/ab12....safetensors      entries; the file's time is when it was last used

An entry appears whole, by renaming, and goes by removing: a reader has the old one, the new one or none. Nothing is
made durable: after a loss of power an entry may be damaged, and whoever reads it finds that.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unfuse.errors import FileAccessError, InputError
from unfuse.feature_store.ledger import Ledger, locked

DEFAULT_MAX_BYTES: Final = 50 * 2**30
"""50 GiB: some 11,000 scenes of EventGPT-7b in bfloat16 (582 positions of 4096), 4.8 MB each."""
MAX_ENTRY_BYTES: Final = 4 * 2**30
"""What is larger is nobody's features, and is not read into memory."""
_LOW_WATER: Final = 0.9
"""Of the bound: what is left when entries go, so that not every ``write`` has to look at all of them."""
_STALE_S: Final = 600.0
"""A file takes seconds to write: one that is older was left by a process that was killed."""
_TAG: Final = "CACHEDIR.TAG"
_TAG_TEXT: Final = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# unfuse feature store: encoded scenes, each of which can be computed again.\n"
)
_SUFFIX: Final = ".safetensors"
_SHARD: Final = re.compile(r"[0-9a-f]{2}")
_ENTRY: Final = re.compile(rf"[0-9a-f]{{64}}{re.escape(_SUFFIX)}")


@dataclass(frozen=True, slots=True)
class Found:
    """What lies under a name."""

    data: bytes | None
    """None where it is no file of a size that can be read: a folder, a link, a pipe."""
    identity: tuple[int, int, int]
    """Tells it from what may take its place."""


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What a store holds."""

    entries: int
    entry_bytes: int
    temporary_bytes: int
    """Of files that are being written, or were when their process was killed."""
    least_recent_use: float | None
    """Seconds since 1970; None where there is no entry."""
    most_recent_use: float | None


class StoreFolder:
    """The folder of one store, shared by any number of processes."""

    def __init__(self, path: Path, max_bytes: int, *, make: bool):
        """Looks at the folder, and makes it if that is wanted.

        Raises:
            FileAccessError: there is none, it is a file, or it cannot be made.
            InputError: it holds something else.
        """
        self.path = path
        self._max_bytes = max_bytes
        self._tmp = path / "tmp"
        self._swept = False
        self._open(make=make)

    def place(self, key: str) -> Path:
        """Where an entry lies or would lie."""
        return self.path / key[:2] / f"{key}{_SUFFIX}"

    def read(self, key: str) -> Found | None:
        """What lies under a name; None if nothing does, or nothing that this user may read."""
        return read_entry(self.place(key))

    def touch(self, key: str) -> None:
        """Notes that an entry was used, by the file system's clock: the one that all processes share."""
        with suppress(OSError):  # a store that may only be read, or an entry that has just gone
            os.utime(self.place(key), follow_symlinks=False)

    def write(self, key: str, data: bytes) -> int:
        """Puts an entry in its place.

        Returns:
            How many others had to go.

        Raises:
            OSError: it could not be done; everything is as before.
        """
        if len(data) > min(self._max_bytes, MAX_ENTRY_BYTES):
            raise OSError(errno.EFBIG, f"{len(data)} bytes are more than the store's bound")
        place = self.place(key)
        self._prepare(place.parent)
        temporary = self._tmp / f"{os.getpid()}.{secrets.token_hex(8)}"
        try:
            _write_new(temporary, data)
            with self._changing() as (ledger, total):
                freed = _make_way(place)
                temporary.replace(place)
                total += len(data) - freed
                evicted = 0
                if total > self._max_bytes:
                    evicted, total = self._evict(place)
                ledger.give(total)
        finally:
            with suppress(OSError):
                temporary.unlink()
        return evicted

    def remove(self, key: str, identity: tuple[int, int, int]) -> None:
        """Removes what ``read`` found, if it still lies there."""
        place = self.place(key)
        with suppress(OSError), self._changing() as (ledger, total):
            freed = _remove(place) if _identity(place.stat(follow_symlinks=False)) == identity else 0
            ledger.give(total - freed)

    def entries(self) -> Iterator[Path]:
        """Everything under names of entries, in any order."""
        for shard in _scan(self.path):
            if _SHARD.fullmatch(shard.name) and shard.is_dir(follow_symlinks=False):
                yield from (Path(e.path) for e in _scan(Path(shard.path)) if _ENTRY.fullmatch(e.name))

    def info(self) -> StoreInfo:
        """Counts everything."""
        found = list(self._sized(self.entries()))
        times = [used_ns / 1e9 for used_ns, _, _ in found]
        return StoreInfo(
            entries=len(found),
            entry_bytes=sum(size for _, size, _ in found),
            temporary_bytes=sum(size for _, size, _ in self._sized(self._temporary())),
            least_recent_use=min(times, default=None),
            most_recent_use=max(times, default=None),
        )

    def clear(self) -> StoreInfo:
        """Removes every entry and what was left of writing others; returns what was there.

        Raises:
            OSError: something cannot be removed.
        """
        before = self.info()
        with self._changing() as (ledger, _):
            for entry in list(self.entries()):
                _remove(entry)
            for path in self._temporary():
                path.unlink(missing_ok=True)
            ledger.give(0)
        return before

    def _temporary(self) -> Iterator[Path]:
        return (Path(entry.path) for entry in _scan(self._tmp))

    @staticmethod
    def _sized(paths: Iterable[Path]) -> Iterator[tuple[int, int, Path]]:
        """(last use in ns, bytes, path) of those that are still there."""
        for path in paths:
            with suppress(OSError):
                found = path.stat(follow_symlinks=False)
                yield found.st_mtime_ns, found.st_size, path

    @contextmanager
    def _changing(self) -> Iterator[tuple[Ledger, int]]:
        """The ledger, held, and the bytes there are; whoever changes them gives the new number back."""
        with locked(self.path / "ledger") as ledger:
            known = ledger.take()
            total = sum(size for _, size, _ in self._sized(self.entries())) if known is None else known
            yield ledger, total

    def _evict(self, keep: Path) -> tuple[int, int]:
        """Removes what was not used for longest; returns how many entries, and the bytes that are left."""
        found = sorted(self._sized(self.entries()))
        total, evicted = sum(size for _, size, _ in found), 0
        for _, size, path in found:
            if total <= _LOW_WATER * self._max_bytes:
                break
            if path != keep:
                with suppress(OSError):
                    _remove(path)
                    total, evicted = total - size, evicted + 1
        return evicted, total

    def _prepare(self, shard: Path) -> None:
        """Makes what is missing, and once for each process clears away what killed ones left."""
        for folder in (self._tmp, shard):
            folder.mkdir(parents=True, exist_ok=True)
            if folder.is_symlink():
                raise OSError(errno.ELOOP, f"{folder.name} is a link")
        if not (self.path / _TAG).exists():
            self._write_tag()  # the folder was removed while it was in use
        if not self._swept:
            self._swept = True
            for written_ns, _, path in self._sized(self._temporary()):
                if time.time() - written_ns / 1e9 > _STALE_S:
                    with suppress(OSError):
                        path.unlink()

    def _open(self, *, make: bool) -> None:
        if make:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                found = "a file" if self.path.exists() else error.strerror
                raise FileAccessError(str(self.path), found=found, expected="a folder for encoded scenes") from None
        try:
            others = [path for path in self.path.iterdir() if not path.name.startswith(".")]
        except OSError as error:
            raise FileAccessError(str(self.path), found=error.strerror, expected="a folder of encoded scenes") from None
        # Whoever makes a store writes the tag first, so another process that finds anything finds the tag.
        if (others or not make) and not self._has_tag():
            raise InputError(
                str(self.path),
                found="a folder with something else in it" if others else "an empty folder",
                expected="an empty folder, or one of encoded scenes" if make else "a folder of encoded scenes",
            )
        if not others:
            self._write_tag()

    def _has_tag(self) -> bool:
        with suppress(OSError), (self.path / _TAG).open("rb") as file:
            return file.read(len(_TAG_TEXT)) == _TAG_TEXT.encode()
        return False

    def _write_tag(self) -> None:
        partial = self.path / f".{_TAG}.{secrets.token_hex(4)}"
        with suppress(OSError):  # a store that may only be read
            try:
                _write_new(partial, _TAG_TEXT.encode())
                partial.replace(self.path / _TAG)
            finally:
                partial.unlink(missing_ok=True)


def read_entry(place: Path) -> Found | None:
    """Bytes of a file, without following a link, waiting on a pipe or reading what no entry can be."""
    try:
        with os.fdopen(os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            readable = stat.S_ISREG(found.st_mode) and found.st_size <= MAX_ENTRY_BYTES
            return Found(file.read() if readable else None, _identity(found))
    except OSError as error:
        # Nothing, or another user's file: a miss. A link, a socket or a bad block has no business here.
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ESTALE):
            return None
    try:
        return Found(None, _identity(place.stat(follow_symlinks=False)))
    except OSError:
        return None


def _identity(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_mtime_ns, found.st_size


def _scan(folder: Path) -> Iterator[os.DirEntry[str]]:
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as found:
        yield from found


def _write_new(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb") as file:
        file.write(data)


def _make_way(place: Path) -> int:
    """Bytes of what renaming to ``place`` replaces; a folder, which cannot be replaced, is removed."""
    try:
        found = place.stat(follow_symlinks=False)
    except FileNotFoundError:
        return 0
    return _remove(place) if stat.S_ISDIR(found.st_mode) else found.st_size


def _remove(place: Path) -> int:
    """Removes whatever it is; returns its bytes as they were counted."""
    try:
        found = place.stat(follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            shutil.rmtree(place)
        else:
            place.unlink()
    except FileNotFoundError:
        return 0
    return found.st_size
