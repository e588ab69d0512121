"""A folder of entries named by 64 hexadecimal digits, up to a maximum size.

::

    CACHEDIR.TAG                marks the folder as a cache, also for programs that make backups
    ledger                      total size in bytes; locked by the process that changes it
    tmp/PID.RANDOM              a file that is being written
    ab/ab12....safetensors      entries; the file's time is its last use

An entry is renamed into the folder as a whole, so a reader finds the old one, the new one or none. Nothing is
synchronised to the disk: after a power failure an entry may be damaged, and its reader finds that.
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

from unfuse.atomic_files import make_folder
from unfuse.errors import FileAccessError, InputError
from unfuse.feature_store.ledger import Ledger, locked

DEFAULT_MAX_BYTES: Final = 50 * 2**30
"""50 GiB: some 11,000 scenes of EventGPT-7b in bfloat16 (582 positions of 4096), 4.8 MB each."""
MAX_ENTRY_BYTES: Final = 4 * 2**30
"""A larger file holds no features, and is not read into memory."""
_LOW_WATER: Final = 0.9
"""Share of the maximum that eviction leaves, so that not every ``write`` has to read all sizes."""
_STALE_S: Final = 600.0
"""Age that shows that the process of a temporary file was killed; writing a file takes seconds."""
_TAG: Final = "CACHEDIR.TAG"
_TAG_TEXT: Final = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# unfuse feature store: encoded scenes, each of which can be computed again.\n"
)
_SUFFIX: Final = ".safetensors"
_SHARD: Final = re.compile(r"[0-9a-f]{2}")
_ENTRY: Final = re.compile(rf"[0-9a-f]{{64}}{re.escape(_SUFFIX)}")


@dataclass(frozen=True, slots=True)
class StoreEntry:
    """Content of an entry as it was read."""

    data: bytes | None
    """None if it is no regular file of a readable size: a folder, a link, a pipe."""
    identity: tuple[int, int, int]
    """Inode, time and size: a file that replaces this one has others."""


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """Number and size of a store's entries."""

    entries: int
    entry_bytes: int
    temporary_bytes: int
    """Size of files that are being written, or were when their process was killed."""
    least_recent_use: float | None
    """Seconds since 1970; None if there is no entry."""
    most_recent_use: float | None


class StoreFolder:
    """The folder of one store, shared by any number of processes."""

    def __init__(self, path: Path, max_bytes: int, *, make: bool):
        """Check the folder, and create it if ``make`` is true.

        Raises:
            FileAccessError: there is no folder, it is a file, or it cannot be made.
            InputError: it holds something else.
        """
        self.path = path
        self._max_bytes = max_bytes
        self._tmp = path / "tmp"
        self._swept = False
        self._open(make=make)

    def entry_path(self, key: str) -> Path:
        """Return the path of an entry, even if the entry does not exist."""
        return self.path / key[:2] / f"{key}{_SUFFIX}"

    def read(self, key: str) -> StoreEntry | None:
        """Read an entry; None if there is none, or none that this user may read."""
        return read_entry(self.entry_path(key))

    def touch(self, key: str) -> None:
        """Record that an entry was used, by the file system's clock: all processes share it."""
        with suppress(OSError):  # a read-only store, or an entry that was just removed
            os.utime(self.entry_path(key), follow_symlinks=False)

    def write(self, key: str, data: bytes) -> int:
        """Write an entry, and evict others if the maximum is exceeded.

        Returns:
            Number of evicted entries.

        Raises:
            OSError: the entry was not written; the store is as before.
        """
        if len(data) > min(self._max_bytes, MAX_ENTRY_BYTES):
            raise OSError(errno.EFBIG, f"{len(data)} bytes are more than the store's bound")
        path = self.entry_path(key)
        self._prepare(path.parent)
        temporary = self._tmp / f"{os.getpid()}.{secrets.token_hex(8)}"
        try:
            _write_new(temporary, data)
            with self._locked_ledger() as (ledger, total):
                freed = _replaced_bytes(path)
                temporary.replace(path)
                total += len(data) - freed
                evicted = 0
                if total > self._max_bytes:
                    evicted, total = self._evict(keep=path)
                ledger.write(total)
        finally:
            with suppress(OSError):
                temporary.unlink()
        return evicted

    def remove(self, key: str, identity: tuple[int, int, int]) -> None:
        """Remove the entry that ``read`` returned, unless another has replaced it."""
        path = self.entry_path(key)
        with suppress(OSError), self._locked_ledger() as (ledger, total):
            freed = _remove(path) if _identity(path.stat(follow_symlinks=False)) == identity else 0
            ledger.write(total - freed)

    def entries(self) -> Iterator[Path]:
        """Yield the path of every entry, in any order."""
        for shard in _scan(self.path):
            if _SHARD.fullmatch(shard.name) and shard.is_dir(follow_symlinks=False):
                yield from (Path(e.path) for e in _scan(Path(shard.path)) if _ENTRY.fullmatch(e.name))

    def info(self) -> StoreInfo:
        """Count entries and bytes."""
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
        """Remove every entry and temporary file; return the information about the store before.

        Raises:
            OSError: something cannot be removed.
        """
        before = self.info()
        with self._locked_ledger() as (ledger, _):
            for entry in list(self.entries()):
                _remove(entry)
            for path in self._temporary():
                path.unlink(missing_ok=True)
            ledger.write(0)
        return before

    def _temporary(self) -> Iterator[Path]:
        return (Path(entry.path) for entry in _scan(self._tmp))

    @staticmethod
    def _sized(paths: Iterable[Path]) -> Iterator[tuple[int, int, Path]]:
        """Yield (last use in ns, bytes, path) of the paths that still exist."""
        for path in paths:
            with suppress(OSError):
                found = path.stat(follow_symlinks=False)
                yield found.st_mtime_ns, found.st_size, path

    @contextmanager
    def _locked_ledger(self) -> Iterator[tuple[Ledger, int]]:
        """Lock the ledger and yield it with the total size in bytes; the body writes the new total."""
        with locked(self.path / "ledger") as ledger:
            recorded = ledger.read_and_clear()
            total = sum(size for _, size, _ in self._sized(self.entries())) if recorded is None else recorded
            yield ledger, total

    def _evict(self, *, keep: Path) -> tuple[int, int]:
        """Remove the least recently used entries; return their number and the bytes that are left."""
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
        """Create missing folders, and once a process remove temporary files of killed processes."""
        for folder in (self._tmp, shard):
            make_folder(folder)
            if folder.is_symlink():
                raise OSError(errno.ELOOP, f"{folder.name} is a link")
        if not (self.path / _TAG).exists():
            self._write_tag()  # the folder was removed while the store was open
        if not self._swept:
            self._swept = True
            for written_ns, _, path in self._sized(self._temporary()):
                if time.time() - written_ns / 1e9 > _STALE_S:
                    with suppress(OSError):
                        path.unlink()

    def _open(self, *, make: bool) -> None:
        if make:
            try:
                make_folder(self.path)
            except OSError as error:
                found = "a file" if self.path.exists() else error.strerror
                raise FileAccessError(str(self.path), found=found, expected="a folder for encoded scenes") from None
        try:
            others = [path for path in self.path.iterdir() if not path.name.startswith(".")]
        except OSError as error:
            raise FileAccessError(str(self.path), found=error.strerror, expected="a folder of encoded scenes") from None
        # A new store gets its tag first, so another process that finds any file finds the tag.
        if (others or not make) and not self._has_tag():
            raise InputError(
                str(self.path),
                found="a folder with something else in it" if others else "an empty folder",
                expected="an empty folder, or a folder of encoded scenes" if make else "a folder of encoded scenes",
            )
        if not others:
            self._write_tag()

    def _has_tag(self) -> bool:
        with suppress(OSError), (self.path / _TAG).open("rb") as file:
            return file.read(len(_TAG_TEXT)) == _TAG_TEXT.encode()
        return False

    def _write_tag(self) -> None:
        partial = self.path / f".{_TAG}.{secrets.token_hex(4)}"
        with suppress(OSError):  # a read-only store
            try:
                _write_new(partial, _TAG_TEXT.encode())
                partial.replace(self.path / _TAG)
            finally:
                partial.unlink(missing_ok=True)


def read_entry(path: Path) -> StoreEntry | None:
    """Read a file without following a link, waiting for a pipe or reading a file too large for an entry."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            readable = stat.S_ISREG(found.st_mode) and found.st_size <= MAX_ENTRY_BYTES
            return StoreEntry(file.read() if readable else None, _identity(found))
    except OSError as error:
        # No file, or another user's file, is a miss. A link, a socket or a bad block is a damaged entry.
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ESTALE):
            return None
    try:
        return StoreEntry(None, _identity(path.stat(follow_symlinks=False)))
    except OSError:
        return None


def _identity(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_mtime_ns, found.st_size


def _scan(folder: Path) -> Iterator[os.DirEntry[str]]:
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as found:
        yield from found


def _write_new(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        os.fchmod(file.fileno(), 0o600)  # whatever the umask is
        file.write(data)


def _replaced_bytes(path: Path) -> int:
    """Return the size of the file that a rename to ``path`` replaces; remove a folder, as rename cannot replace it."""
    try:
        found = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return 0
    return _remove(path) if stat.S_ISDIR(found.st_mode) else found.st_size


def _remove(path: Path) -> int:
    """Remove a file or folder; return its size as it was counted."""
    try:
        found = path.stat(follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        return 0
    return found.st_size
