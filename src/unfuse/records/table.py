"""The samples of several runs as one flat table: one row per line of ``samples.jsonl``, with its field names.

The first columns identify the run. A sub-span becomes two columns named by its path, such as
``spans.load.read.host_ms``. Nothing is rounded, left out or filled in: warm-ups and failures are rows, a value that
was not measured is null.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from unfuse.errors import RunFolderError
from unfuse.records.comparison_folder import read_comparison
from unfuse.records.folder import RunFolder
from unfuse.records.manifest import COMPARISON_FILE, MANIFEST_FILE
from unfuse.records.samples_file import to_flat
from unfuse.records.schema import Manifest, SampleRecord

Kind = Literal["integer", "number", "string", "boolean", "integers", "strings"]

_OF_RUN: Final[Mapping[str, Callable[[Manifest], Any]]] = {
    "run_id": lambda m: m.run_id,
    "created": lambda m: m.created,
    "model": lambda m: m.model.get("name"),
    "model_fingerprint": lambda m: m.model.get("fingerprint"),
    "protocol": lambda m: m.protocol,
    "engine": lambda m: m.model.get("engine"),
    "dtype": lambda m: m.model.get("dtype"),
    "device": lambda m: m.model.get("device"),
    "device_name": lambda m: m.environment.get("device_name"),
}
_KINDS: Final[Mapping[Any, Kind]] = {int: "integer", float: "number", str: "string", bool: "boolean"}
_HINTS: Final = get_type_hints(SampleRecord)
"""Annotations of the record; any other column is a stage's time."""
_LISTS: Final[Mapping[Any, Kind]] = {int: "integers", str: "strings"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportTable:
    """Rows under typed columns."""

    columns: Mapping[str, Kind]
    """In order."""
    rows: tuple[Mapping[str, Any], ...]
    """Values of the column's kind, None for a missing value."""
    num_runs: int


def run_folders(path: str | Path) -> tuple[Path, ...]:
    """Return the run folder itself, or the folders of a comparison's parts that were started.

    Raises:
        RunFolderError: it is neither, or holds no run.
    """
    folder = Path(path)
    if (folder / MANIFEST_FILE).is_file() or not (folder / COMPARISON_FILE).is_file():
        return (folder,)
    parts = (folder / part.folder for part in read_comparison(folder).parts)
    started = tuple(part for part in parts if (part / MANIFEST_FILE).is_file())
    if not started:
        raise RunFolderError(f"run folder {path}", found="a comparison without a run", expected="at least one")
    return started


def sample_table(paths: Sequence[str | Path]) -> ExportTable:
    """Return every reported record of every run, in order.

    Args:
        paths: run folders and folders of comparisons.

    Raises:
        RunFolderError: one is neither, is damaged, of another schema, or is there twice.
    """
    folders = [folder for path in paths for folder in run_folders(path)]
    seen: set[Path] = set()
    rows: list[dict[str, Any]] = []
    blank = to_flat(SampleRecord(sample_id="", status="ok"))
    found = {field: {name: kind for name, kind, _ in _field(field, value)} for field, value in blank.items()}
    for folder in folders:
        if folder.resolve() in seen:
            raise RunFolderError(f"run folder {folder}", found="it twice", expected="each run once")
        seen.add(folder.resolve())
        run = RunFolder.open(folder)
        of_run = {name: _text(value(run.manifest)) for name, value in _OF_RUN.items()}
        for record in run.records():
            row = dict(of_run)
            for field, value in to_flat(record).items():
                for column, kind, item in _field(field, value):
                    found[field][column] = kind
                    row[column] = item
            rows.append(row)
    columns: dict[str, Kind] = dict.fromkeys(_OF_RUN, "string")
    for of_field in found.values():
        columns |= of_field
    return ExportTable(
        columns=columns,
        rows=tuple({name: row.get(name) for name in columns} for row in rows),
        num_runs=len(folders),
    )


def _field(name: str, value: Any) -> Iterator[tuple[str, Kind, Any]]:
    return _cells(name, value, _HINTS.get(name, float))


def _cells(name: str, value: Any, hint: Any) -> Iterator[tuple[str, Kind, Any]]:
    """Yield a field as columns: one, or one for each value inside it, named by its path."""
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (argument for argument in get_args(hint) if argument is not type(None))
    if get_origin(hint) is Mapping:
        for key, item in (value or {}).items():
            yield from _cells(f"{name}.{key}", item, get_args(hint)[1])
    elif is_dataclass(hint):
        hints = get_type_hints(hint)
        for key, item in (value or {}).items():
            yield from _cells(f"{name}.{key}", item, hints[key])
    elif get_origin(hint) is tuple and is_dataclass(get_args(hint)[0]):
        # A table's cell holds no table.
        yield name, "string", None if value is None else json.dumps(value)
    elif get_origin(hint) is tuple:
        yield name, _LISTS[get_args(hint)[0]], value
    else:
        yield name, "string" if get_origin(hint) is Literal else _KINDS[hint], value


def _text(value: object) -> str | None:
    return None if value is None else str(value)
