"""How a run's folder comes to be, whole, and whether a folder's run may be continued."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from unfuse.errors import RunFolderError
from unfuse.runs.atomic import cannot_write, sync_folder, write_text_atomic
from unfuse.runs.lock import FolderLock
from unfuse.runs.manifest import differences, write_manifest
from unfuse.runs.place import refuse_occupied, take_away
from unfuse.runs.schema import Manifest


@dataclass(slots=True)
class Beginning:
    """A folder that holds a manifest, an empty file of lines and a lock that is held."""

    path: Path
    lock: FolderLock
    made: list[Path]
    """Folders to take away if the run never begins, innermost first."""


@contextmanager
def begun(path: Path, manifest: Manifest, lines: str) -> Iterator[Beginning]:
    """Makes a run's folder; an error in the body takes it away again.

    The folder is filled under another name and then moved into place, so nobody ever sees half of it.

    Args:
        path: absolute; nothing is there, or an empty folder.
        manifest: of the run.
        lines: name of the file that the run will append to.

    Raises:
        RunFolderError: the folder holds a run or anything else, or cannot be made; nothing is left then.
    """
    refuse_occupied(path)
    staging = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    made = [folder for folder in path.parents if not folder.exists()]
    home = staging
    lock: FolderLock | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir()
        lock = FolderLock(staging)
        write_manifest(staging, manifest)
        write_text_atomic(staging / lines, "")
        refuse_occupied(path)
        staging.rename(path)
        home = path
        sync_folder(path.parent)
        yield Beginning(path, lock, [path, *made])
    except BaseException as error:
        if lock is not None:
            lock.close()
        take_away(home, *made)
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise


def require_same(path: Path, recorded: Manifest, current: Manifest) -> None:
    """Passes where the two are one run.

    Raises:
        RunFolderError: every difference is named.
    """
    if found := differences(recorded, current):
        raise RunFolderError(
            f"run folder {path}",
            found=f"a run that is not this one ({'; '.join(found)})",
            expected="the same run",
            fix="undo the change or give another --output",
        )
