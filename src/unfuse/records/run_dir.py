"""A run folder as a folder: its files, its lock, how it is created whole, and how an unused one is removed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

from unfuse.atomic_files import is_partial, make_folder, remove_partials, sync_folder
from unfuse.errors import RunFolderError
from unfuse.locks import FileLock, LockedError
from unfuse.records.answers_file import ANSWERS_FILE
from unfuse.records.atomic import cannot_write, write_json_atomic, write_text_atomic
from unfuse.records.manifest import COMPARISON_FILE, MANIFEST_FILE, differences, read_manifest, write_manifest
from unfuse.records.samples_file import SAMPLES_FILE
from unfuse.records.schema import Manifest

SUMMARY_FILE: Final = "summary.json"
REPORT_FILE: Final = "report.md"
HTML_FILE: Final = "report.html"
PROBES_FILE: Final = "probes.json"
TRACE_FILE: Final = "trace.json"
PROFILE_FILE: Final = "profile.json"
LOCK_FILE: Final = ".lock"
_FILES: Final = (
    MANIFEST_FILE,
    COMPARISON_FILE,
    SAMPLES_FILE,
    ANSWERS_FILE,
    PROBES_FILE,
    SUMMARY_FILE,
    REPORT_FILE,
    HTML_FILE,
    TRACE_FILE,
    PROFILE_FILE,
    LOCK_FILE,
)


class FolderLock:
    """Lock of a run folder, so that it has one writer.

    The lock file stays: its folder is renamed with it, and another process may have opened it.
    """

    def __init__(self, folder: Path):
        """Take the lock, without waiting.

        Raises:
            RunFolderError: another process holds it, or the lock file cannot be made.
        """
        path = folder / LOCK_FILE
        try:
            self._lock = FileLock(path)
        except LockedError:
            raise RunFolderError(
                f"run folder {folder}",
                found="another process writing to it",
                expected="one writer",
                fix="wait for it to end or give another --output",
            ) from None
        except OSError as error:
            raise cannot_write(path, error) from error

    def close(self) -> None:
        """Release the lock; a second call does nothing."""
        self._lock.release()


class LinesWriter(Protocol):
    """Writer of a run's file of lines."""

    def close(self) -> None:
        """Close the file."""


class OpenFolder:
    """A run folder that is open, as a context manager.

    Leaving the ``with`` block by an error before the first line removes a folder that this process created, so that a
    run that never started leaves nothing behind.
    """

    def __init__(self, path: Path, manifest: Manifest, lock: FolderLock | None, writer: LinesWriter | None):
        self.path = path
        self.manifest = manifest
        self._lock = lock
        self._writer = writer
        self._created: list[Path] = []
        """Folders to remove if the run never starts, innermost first; emptied by the first line."""

    @property
    def ended(self) -> bool:
        """True if the run wrote its summary."""
        return (self.path / SUMMARY_FILE).is_file()

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write ``summary.json`` as a whole.

        Raises:
            RunFolderError: it is not JSON, or cannot be written.
        """
        write_json_atomic(self.path / SUMMARY_FILE, summary)

    def close(self) -> None:
        """Close the file of lines and release the folder; a second call does nothing."""
        try:
            if self._writer is not None:
                self._writer.close()
        finally:
            if self._lock is not None:
                self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
        finally:
            if error is not None and self._created:
                remove_run(*self._created)
            if self._lock is not None:
                self._lock.close()


@contextmanager
def created_folder(path: Path, fill: Callable[[Path], None]) -> Iterator[tuple[FolderLock, list[Path]]]:
    """Create a run's folder; yield its lock and the created folders, innermost first. An error removes them again.

    The folder is filled under another name and then renamed, so that no reader sees half of it.

    Args:
        path: absolute; nothing is there, or an empty folder.
        fill: writes the first files into a folder.

    Raises:
        RunFolderError: the folder holds a run or anything else, or cannot be made; nothing is left then.
    """
    refuse_occupied(path)
    staging = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    parents = [folder for folder in path.parents if not folder.exists()]
    current = staging
    lock: FolderLock | None = None
    try:
        make_folder(staging)
        lock = FolderLock(staging)
        fill(staging)
        refuse_occupied(path)
        remove_partials(path)
        staging.rename(path)
        current = path
        sync_folder(path.parent)
        yield lock, [path, *parents]
    except BaseException as error:
        if lock is not None:
            lock.close()
        remove_run(current, *parents)
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise


def write_start(folder: Path, *, manifest: Manifest, lines_file: str) -> None:
    """Write the first files of a run.

    Args:
        folder: of the run.
        manifest: of the run.
        lines_file: name of the file that the run will append to.
    """
    write_manifest(folder, manifest)
    write_text_atomic(folder / lines_file, "")


@contextmanager
def resumed_folder(
    path: Path, manifest: Manifest, changed_input: Callable[[], str | None] = lambda: None
) -> Iterator[tuple[FolderLock, Manifest]]:
    """Lock the folder of a run to continue it; yield the lock and the manifest to write. An error releases the lock.

    Args:
        path: absolute.
        manifest: of the process that continues the run.
        changed_input: returns a phrase that names the first changed question or medium. Called only if nothing else
            differs, because it reads media.

    Raises:
        RunFolderError: the folder holds no run, another process writes to it, or ``manifest`` or the inputs are of
            another run, with every difference.
    """
    recorded = read_manifest(path)
    lock = FolderLock(path)
    try:
        found = differences(recorded, manifest)
        # The hash of a dataset says that it changed, and not where.
        if all(each.startswith("dataset.") for each in found) and (changed := changed_input()) is not None:
            found = (changed,)
        if found:
            raise RunFolderError(
                f"run folder {path}",
                found=f"a run that is not this one ({'; '.join(found)})",
                expected="the same run",
                fix="undo the change or give another --output",
            )
        yield lock, replace(recorded, resumed=(*recorded.resumed, manifest.created))
    except BaseException:
        lock.close()
        raise


def refuse_occupied(path: str | Path) -> None:
    """Refuse a folder that cannot take a new run: only a missing or an empty folder passes.

    Temporary files do not count: a process that was killed before its first file was complete leaves one.

    Raises:
        RunFolderError: the folder holds a run or other files, or is no folder.
    """
    try:
        names = os.listdir(path)  # noqa: PTH208 - Path.iterdir is lazy; a file at ``path`` must be refused here
    except FileNotFoundError:
        return
    except OSError as error:
        raise cannot_write(Path(path), error) from error
    if all(map(is_partial, names)):
        return
    holds_run = MANIFEST_FILE in names or COMPARISON_FILE in names
    raise RunFolderError(
        f"run folder {path}",
        found="a run" if holds_run else "files that are no run",
        expected="a new or empty folder",
        fix="continue it with --resume or give another --output" if holds_run else "give another --output",
    )


def remove_run(run: Path, *parents: Path) -> None:
    """Remove a run's own files, its folder and the folders made for it; a folder with other files stays."""
    for name in _FILES:
        with suppress(OSError):
            (run / name).unlink()
    for folder in (run, *parents):
        with suppress(OSError):
            folder.rmdir()
