"""Files that appear complete or not at all, and folders; both are private unless the caller says otherwise."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_PARTIAL: Final = re.compile(r"\..+\.[0-9a-f]{8}\.partial")


def is_partial(name: str) -> bool:
    """Return whether a file name is that of a temporary file, which a killed process may have left."""
    return _PARTIAL.fullmatch(name) is not None


def remove_partials(folder: Path) -> None:
    """Remove the temporary files that killed processes have left in a folder that nobody else writes to.

    Raises:
        OSError: the system refused.
    """
    if folder.is_dir():
        for path in folder.iterdir():
            if is_partial(path.name):
                path.unlink(missing_ok=True)


@contextmanager
def complete_file(path: Path, *, durable: bool = False, private: bool = True) -> Iterator[Path]:
    """Yield an empty temporary file beside ``path``, and move it to ``path`` if the body succeeds.

    Args:
        path: the final name.
        durable: whether the contents are on the disk before the file is moved.
        private: whether only the owner may read and write the file, whatever the umask is; otherwise the permissions
            follow the umask.

    Raises:
        OSError: the system refused.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    descriptor = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600 if private else 0o666)
    try:
        if private:
            os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)
    try:
        yield partial
        if durable:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents for the owner alone, whatever the umask is; others stay as they are.

    Raises:
        OSError: the system refused, or a file has the name.
    """
    if folder.is_dir():
        return
    if folder.parent != folder:
        make_folder(folder.parent)
    try:
        folder.mkdir(0o700)
    except FileExistsError:
        if not folder.is_dir():
            raise
    else:
        folder.chmod(0o700)


def sync_folder(folder: Path) -> None:
    """Synchronise the folder's entries to the disk.

    Raises:
        OSError: the system refused.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
