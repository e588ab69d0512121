"""Files written as a whole or not at all: a temporary file is synchronised to the disk, then renamed.

Temporary file in the same folder -> fsync -> ``os.replace`` -> fsync of the folder. A reader sees the old
file or the new one, after a crash too; on any failure the old one stays and the temporary one is removed.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from unfuse.errors import RunFolderError
from unfuse.records.conversion import to_plain


def write_text_atomic(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8; lone surrogates, which UTF-8 cannot hold, become escapes.

    Raises:
        RunFolderError: the file could not be written; it says why.
    """
    write_bytes_atomic(path, text.encode("utf-8", "backslashreplace"))


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` as the whole file.

    Raises:
        RunFolderError: the file could not be written; it says why.
    """
    write_chunks_atomic(path, (data,))


def write_chunks_atomic(path: Path, chunks: Iterable[bytes]) -> None:
    """Write chunks as the whole file; they need not fit into memory together.

    Raises:
        RunFolderError: the file could not be written; it says why.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            _write_durably(temporary, chunks)
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


def write_json_atomic(path: Path, value: object) -> None:
    """Write a plain value or dataclass as indented JSON with a final line end.

    Raises:
        RunFolderError: the value holds NaN, infinity or what is not JSON, or the file could not be written.
    """
    plain = to_plain(value, where=str(path))
    write_text_atomic(path, json.dumps(plain, indent=2, allow_nan=False) + "\n")


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


def cannot_write(path: Path, error: OSError) -> RunFolderError:
    """Return the error for a file that could not be written, with the system's reason."""
    reason = error.strerror or type(error).__name__
    return RunFolderError(
        str(path),
        found=f"cannot be written ({reason})",
        expected="a writable place",
        fix="free space or give another --output",
    )


def _write_durably(path: Path, chunks: Iterable[bytes]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
