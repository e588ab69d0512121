"""The public surface as data: Python names with their arguments, commands with their options, errors with exit codes.

``python -m tests.contract.surface`` writes it to ``surface.json``, with which the tests compare the package. Write it
again only when the surface should change, and note the change in CHANGELOG.md.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import click

import unfuse
from unfuse import errors
from unfuse.cli import cli
from unfuse.report.schemas import schemas

SURFACE_FILE = Path(__file__).with_name("surface.json")


def surface() -> dict[str, Any]:
    """Return everything, in the order of names."""
    return {
        "python": {name: _python(getattr(unfuse, name)) for name in sorted(unfuse.__all__)},
        "commands": dict(sorted(_commands(cli, "unfuse"))),
        "errors": {
            name: [each.exit_code, [base.__name__ for base in each.__bases__]]
            for name, each in sorted(vars(errors).items())
            if inspect.isclass(each) and issubclass(each, errors.UnfuseError)
        },
        "records": {
            name: {"required": sorted(schema.get("required", [])), "fields": sorted(schema.get("properties", {}))}
            for name, schema in sorted(schemas().items())
        },
    }


def _python(found: Any) -> Any:
    if not inspect.isclass(found):
        return _arguments(found)
    public = {name: member for name, member in vars(found).items() if not name.startswith("_")}
    members = {}
    for name, member in sorted(public.items()):
        function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
        members[name] = _arguments(function) if inspect.isfunction(function) else "attribute"
    fields = [field.name for field in dataclasses.fields(found)] if dataclasses.is_dataclass(found) else []
    return {"made from": _arguments(found), "fields": fields, "members": members}


def _arguments(function: Any) -> list[str]:
    """Return names with kind and default, without types, which may become more exact."""
    found = []
    for each in inspect.signature(function).parameters.values():
        default = "" if each.default is each.empty else f" = {each.default!r}"
        found.append(f"{each.name} ({each.kind.description}){default}")
    return found


def _commands(command: click.Command, name: str) -> list[tuple[str, Any]]:
    if isinstance(command, click.Group):
        return [pair for key, each in command.commands.items() for pair in _commands(each, f"{name} {key}")]
    return [(name, {_spelt(each): _option(each) for each in command.params})]


def _spelt(parameter: click.Parameter) -> str:
    return " / ".join(sorted([*parameter.opts, *parameter.secondary_opts]))


def _option(parameter: click.Parameter) -> dict[str, Any]:
    about = parameter.to_info_dict()
    kind = {key: value for key, value in about["type"].items() if key in ("param_type", "choices", "min", "max")}
    default = about.get("default")
    return {
        "kind": about["param_type_name"],
        "type": {key: list(value) if isinstance(value, tuple) else value for key, value in kind.items()},
        "required": about["required"],
        "nargs": about["nargs"],
        "multiple": about["multiple"],
        "default": default if isinstance(default, (str, int, float, bool, type(None))) else repr(default),
        "is_flag": about.get("is_flag", False),
    }


if __name__ == "__main__":
    SURFACE_FILE.write_text(json.dumps(surface(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
