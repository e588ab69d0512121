"""Conversion between record dataclasses and plain JSON values, and the check of every value that is read.

``msgspec.convert`` checks the types of the values read. This module adds three checks that msgspec does not support:
NaN and infinities are refused both ways (msgspec writes them as null), unknown fields of a dataclass are refused, and
an error names the key of a mapping and the value that was found there.

JSON text goes through ``json``: a model's answer may hold lone surrogates, and msgspec refuses them.
"""

from __future__ import annotations

import json
import math
import numbers
import os
import re
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from unfuse.errors import RunFolderError
from unfuse.records.schema import SCHEMA_VERSION

T = TypeVar("T")

_MAX_CHARACTERS: Final = 80


def to_plain(value: object, *, where: str) -> Any:
    """Return the plain JSON form of a value.

    Args:
        value: a dataclass or anything that a dataclass may hold; numpy scalars become numbers, paths become strings.
        where: name of the value in an error.

    Raises:
        RunFolderError: a number is NaN or infinite, or a value has no JSON form.
    """
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        if not math.isfinite(number):
            raise RunFolderError(where, found=number, expected="a finite number, or None where nothing was measured")
        return number
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name), where=f"{where}: {f.name}") for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item, where=f"{where}: {key}") for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(item, where=f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise RunFolderError(where, found=type(value).__name__, expected="a number, a string, a list or a mapping")


def from_plain(kind: type[T], value: object, *, where: str, ignore_unknown: bool = False) -> T:
    """Return the dataclass of a plain JSON value.

    Args:
        kind: the dataclass.
        value: the result of ``to_plain``, read back from JSON.
        where: name of the value in an error.
        ignore_unknown: skip fields that ``kind`` does not have (written by a newer minor version).

    Raises:
        RunFolderError: a field is unknown, missing or of another type, or a number is infinite; it names the field.
    """
    try:
        finite = to_plain(value, where=where)
        try:
            record = msgspec.convert(finite, kind)
        except msgspec.ValidationError as error:
            raise _located(kind, finite, where, str(error)) from None
        if not ignore_unknown:
            _refuse_unknown(finite, msgspec.to_builtins(record), where)
    except UnicodeEncodeError:  # msgspec compares a text with the allowed ones as UTF-8
        raise RunFolderError(where, found="half of a surrogate pair", expected="one of the allowed values") from None
    except RecursionError:
        raise RunFolderError(where, found="values that are nested too deeply", expected="a record") from None
    return record


def parse_object(text: str | bytes, *, where: str) -> dict[str, Any]:
    """Parse one JSON object; NaN and Infinity are not JSON.

    Raises:
        RunFolderError: the text is anything else.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RunFolderError(where, found=f"no JSON ({error})", expected="one JSON object") from error
    if not isinstance(value, dict):
        raise RunFolderError(where, found=type(value).__name__, expected="one JSON object")
    return value


def read_record(kind: type[T], path: Path, *, expected: str) -> T:
    """Read the record of a JSON file that holds its ``schema_version``.

    Args:
        kind: the dataclass.
        path: the file.
        expected: the content that belongs there, for the error.

    Raises:
        FileNotFoundError: there is no such file.
        RunFolderError: the file cannot be read, is damaged, or is of another schema or major version.
    """
    where = str(path)
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RunFolderError(where, found=f"cannot be read ({error.strerror})", expected=expected) from error
    value = parse_object(text, where=where)
    newer = is_newer_minor(value.get("schema_version"), where=where)
    return from_plain(kind, value, where=where, ignore_unknown=newer)


def is_newer_minor(version: object, *, where: str) -> bool:
    """Return whether a file of this version may hold fields that this code does not know.

    Args:
        version: the file's ``schema_version``.
        where: name of the file in an error.

    Raises:
        RunFolderError: the major number is another, or ``version`` is no version at all.
    """
    match = re.fullmatch(r"(\d{1,6})\.(\d{1,6})", version) if isinstance(version, str) else None
    major, minor = (int(number) for number in SCHEMA_VERSION.split("."))
    if match is None or int(match[1]) != major:
        raise RunFolderError(
            f"{where}: schema_version",
            found=f"{version!r:.40}",
            expected=f"{major}.x",
            fix="read it with the version of unfuse that wrote it",
        )
    return int(match[2]) > minor


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _refuse_unknown(value: Any, record: Any, where: str) -> None:
    """Refuse a field that the record does not have: msgspec skips it.

    Raises:
        RunFolderError: names the field.
    """
    if isinstance(value, dict):
        for name in sorted(value):
            if name not in record:
                raise RunFolderError(
                    f"{where}: field {name!r}",
                    found="a field of an unknown schema",
                    expected="only fields of the schema",
                )
            _refuse_unknown(value[name], record[name], f"{where}: {name}")
    elif isinstance(value, list):
        for i, (item, each) in enumerate(zip(value, record, strict=True)):
            _refuse_unknown(item, each, f"{where}[{i}]")


def _located(kind: Any, value: Any, where: str, message: str) -> RunFolderError:
    """Turn msgspec's message into the error of the project.

    Args:
        kind: the dataclass that was read.
        value: the plain value that does not fit.
        where: name of the value in the error.
        message: such as "Expected `int`, got `str` - at `$.spans[...].entries[1]`": no key. It may quote the value.
    """
    location = re.search(r" - at `(\$[^`]*)`$", message)
    problem, path = (message[: location.start()], location[1]) if location else (message, "")
    for step in re.findall(r"\w+|\.{3}", path):
        kind = _without_none(kind)
        if is_dataclass(kind):
            kind, value, where = get_type_hints(kind)[step], value[step], f"{where}: {step}"
        elif get_origin(kind) is tuple:
            kind, value, where = get_args(kind)[0], value[int(step)], f"{where}[{step}]"
        else:
            kind = get_args(kind)[1]
            key = next(key for key, item in value.items() if not _fits(kind, item))
            value, where = value[key], f"{where}: {key}"
    if missing := re.search(r"missing required field `(\w+)`", problem):
        return RunFolderError(f"{where}: field {missing[1]!r}", found="no such field", expected="a value")
    kind = _without_none(kind)
    shown = repr(value) if len(repr(value)) <= _MAX_CHARACTERS else f"{value!r:.{_MAX_CHARACTERS}}..."
    return RunFolderError(where, found=shown, expected=_expected(kind))


def _expected(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    names = {float: "a finite number", int: "a whole number", str: "a string", bool: "a boolean"}
    return names.get(kind) or ("a list" if get_origin(kind) is tuple else "an object")


def _without_none(kind: Any) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = (each for each in get_args(kind) if each is not type(None))
    return kind


def _fits(kind: Any, value: object) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True
