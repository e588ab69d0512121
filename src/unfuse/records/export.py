"""A table of samples as one file: CSV, or Parquet through pyarrow (extra ``export``).

Both hold every value exactly. CSV (RFC 4180, lines end with a line feed): strings are quoted and numbers are not, so an
empty field is null and ``""`` an empty string; numbers have all their digits; lists are JSON. Text stays as the model
wrote it: a spreadsheet may take an answer that begins with ``=`` for a formula. Parquet: typed columns, lists as lists.
A lone surrogate is written as an escape, because UTF-8 cannot hold it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from unfuse.errors import InputError, MissingPackageError, RunFolderError
from unfuse.extras import install_command
from unfuse.records.atomic import write_bytes_atomic
from unfuse.records.schema import SCHEMA_VERSION
from unfuse.records.table import ExportTable


def to_csv(table: ExportTable) -> bytes:
    """Return the table as CSV, with a header line."""
    lines = [",".join(map(_quoted, table.columns))]
    lines += [",".join(_field(row[name]) for name in table.columns) for row in table.rows]
    return _utf8("\n".join([*lines, ""]))


def to_parquet(table: ExportTable) -> bytes:
    """Return the table as Parquet, with the record's schema version in the file's metadata.

    Raises:
        MissingPackageError: pyarrow is not installed.
        InputError: a number is too large for 64 bits.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingPackageError(
            "Parquet",
            found="no package pyarrow",
            expected="this package, to write such a file",
            fix=f"run: {install_command('unfuse[export]')}",
        ) from None
    types = {
        "integer": pyarrow.int64(),
        "number": pyarrow.float64(),
        "string": pyarrow.string(),
        "boolean": pyarrow.bool_(),
        "integers": pyarrow.list_(pyarrow.int64()),
        "strings": pyarrow.list_(pyarrow.string()),
    }
    arrays = {}
    for name, kind in table.columns.items():
        try:
            arrays[name] = pyarrow.array([_valid(row[name]) for row in table.rows], types[kind])
        except (OverflowError, pyarrow.ArrowInvalid) as error:
            raise InputError(f"column {name}", found=str(error), expected="64 bits", fix="export to CSV") from None
    file = io.BytesIO()
    schema = pyarrow.schema(
        [(name, types[kind]) for name, kind in table.columns.items()],
        metadata={"unfuse.schema_version": SCHEMA_VERSION},
    )
    pyarrow.parquet.write_table(pyarrow.table(arrays, schema=schema), file)
    return file.getvalue()


FORMATS: Final[Mapping[str, Callable[[ExportTable], bytes]]] = {".csv": to_csv, ".parquet": to_parquet}


def check_export(path: Path, *, replace: bool = False) -> None:
    """Refuse a path that no table can be written to.

    Raises:
        InputError: the suffix is of no known format.
        RunFolderError: there is a file that may not be replaced, or something that is no file.
    """
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"output {path}", found=f"the suffix {path.suffix!r}", expected=" or ".join(FORMATS))
    if path.exists() and not (replace and path.is_file()):
        raise RunFolderError(
            str(path),
            found="a file of that name" if path.is_file() else "no file",
            expected="a new file",
            fix="give another --output, or --replace it" if path.is_file() else "give another --output",
        )


def export(table: ExportTable, path: Path) -> None:
    """Write the table in the format of the file's suffix, as a whole.

    Raises:
        InputError: as ``to_parquet``.
        RunFolderError: the file cannot be written.
    """
    write_bytes_atomic(path, FORMATS[path.suffix.lower()](table), private=False)


def _field(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    return _quoted(value if isinstance(value, str) else json.dumps(value))


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _valid(value: Any) -> Any:
    if isinstance(value, str):
        return _utf8(value).decode()
    return [_valid(item) for item in value] if isinstance(value, list) else value


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
