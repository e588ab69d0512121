"""Frozen dataclasses to plain JSON values and back, checked field by field.

In: a dataclass whose fields are numbers, strings, booleans, ``None``, ``Any``, ``Literal``,
``tuple[T, ...]``, ``Mapping[str, T]`` or such dataclasses. Out: dicts, lists and scalars that any JSON reader
takes. Back again every type is checked against the annotation and a problem is named by its place.
"""

from __future__ import annotations

import json
import math
import numbers
import os
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, NoReturn, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from unfuse.errors import RunFolderError

T = TypeVar("T")

_SHOWN_CHARACTERS = 80


def to_plain(value: object, *, where: str) -> Any:
    """Plain JSON form of a value.

    Args:
        value: a dataclass, or anything one may hold; numpy scalars become numbers, paths become strings.
        where: names the value in an error.

    Raises:
        RunFolderError: a number is NaN or infinite, or a value has no plain form.
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
    """The dataclass ``kind`` from its plain form.

    Args:
        kind: the dataclass.
        value: what ``to_plain`` gave, read back from JSON.
        where: names the value in an error.
        ignore_unknown: pass over fields that ``kind`` does not have (written by a newer minor version).

    Raises:
        RunFolderError: a field is unknown, missing or of another type; the message names it.
    """
    return cast("T", _convert(kind, value, where, ignore_unknown))


def parse_object(text: str | bytes, *, where: str) -> dict[str, Any]:
    """One JSON object, strictly: NaN and Infinity are no JSON.

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


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _convert(hint: Any, value: Any, where: str, lenient: bool) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _convert(inner, value, where, lenient)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            raise _unfit(where, value, " or ".join(map(repr, arguments)))
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise _unfit(where, value, "a list")
        return tuple(_convert(arguments[0], v, f"{where}[{i}]", lenient) for i, v in enumerate(value))
    if is_dataclass(hint):
        return _dataclass(cast("type", hint), value, where, lenient)
    if origin is Mapping:
        if not isinstance(value, dict):
            raise _unfit(where, value, "an object")
        return {key: _convert(arguments[1], item, f"{where}: {key}", lenient) for key, item in value.items()}
    return _scalar(hint, value, where)


def _dataclass(kind: type, value: Any, where: str, lenient: bool) -> Any:
    if not isinstance(value, dict):
        raise _unfit(where, value, "an object")
    hints = get_type_hints(kind)
    if not lenient and (unknown := sorted(value.keys() - hints.keys())):
        raise RunFolderError(
            f"{where}: field {unknown[0]!r}", found="a field of an unknown schema", expected="none such"
        )
    arguments = {}
    for f in fields(kind):
        if f.name in value:
            arguments[f.name] = _convert(hints[f.name], value[f.name], f"{where}: {f.name}", lenient)
        elif f.default is MISSING and f.default_factory is MISSING:
            raise RunFolderError(f"{where}: field {f.name!r}", found="no such field", expected="a value")
    return kind(**arguments)


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    elif isinstance(value, hint) and isinstance(value, bool) == (hint is bool):
        return value
    raise _unfit(
        where,
        value,
        {float: "a finite number", int: "a whole number", str: "a string", bool: "a boolean"}[hint],
    )


def _unfit(where: str, value: object, expected: str) -> RunFolderError:
    shown = repr(value)
    if len(shown) > _SHOWN_CHARACTERS:
        shown = shown[:_SHOWN_CHARACTERS] + "..."
    return RunFolderError(where, found=shown, expected=expected)
