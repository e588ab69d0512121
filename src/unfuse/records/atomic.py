"""Files of run folders, written durably by ``complete_file``: a reader sees the old file or the new one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from unfuse.atomic_files import complete_file, sync_folder
from unfuse.errors import RunFolderError
from unfuse.records.conversion import to_plain


def write_text_atomic(path: Path, text: str, *, private: bool = True) -> None:
    """Write ``text`` as UTF-8; lone surrogates become escapes, because UTF-8 cannot hold them.

    Args:
        path: the file.
        text: its content.
        private: as for ``complete_file``; reports and exports are not.

    Raises:
        RunFolderError: the file could not be written; it says why.
    """
    write_bytes_atomic(path, text.encode("utf-8", "backslashreplace"), private=private)


def write_bytes_atomic(path: Path, data: bytes, *, private: bool = True) -> None:
    """Write ``data`` as the whole file; see ``write_text_atomic``.

    Raises:
        RunFolderError: the file could not be written; it says why.
    """
    write_chunks_atomic(path, (data,), private=private)


def write_chunks_atomic(path: Path, chunks: Iterable[bytes], *, private: bool = True) -> None:
    """Write chunks as the whole file; they need not fit into memory together. See ``write_text_atomic``.

    Raises:
        RunFolderError: the file could not be written; it says why.
    """
    try:
        with complete_file(path, durable=True, private=private) as partial:
            _write(partial, chunks)
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


def write_json_atomic(path: Path, value: object) -> None:
    """Write a plain value or dataclass as indented JSON with a final line end.

    Raises:
        RunFolderError: the value holds NaN, infinity or a type without a JSON form, or the file could not be written.
    """
    plain = to_plain(value, where=str(path))
    write_text_atomic(path, json.dumps(plain, indent=2, allow_nan=False) + "\n")


def cannot_write(path: Path, error: OSError) -> RunFolderError:
    """Return the error for a file that could not be written, with the system's reason."""
    reason = error.strerror or type(error).__name__
    return RunFolderError(
        str(path),
        found=f"cannot be written ({reason})",
        expected="a writable path",
        fix="free space or give another --output",
    )


def _write(path: Path, chunks: Iterable[bytes]) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                view = view[os.write(descriptor, view) :]
    finally:
        os.close(descriptor)
