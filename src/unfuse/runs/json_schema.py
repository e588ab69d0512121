"""JSON Schema (draft 2020-12) of a record type, from its annotations and the docstrings under its fields.

What ``plain.from_plain`` takes is what the schema takes, so neither can say more than the other. It describes every
minor version up to ours: a field that has a default may be missing, as it is in files of older ones.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from unfuse.runs.answers_file import AnswerRecord
from unfuse.runs.lines import BEFORE_STAGES, CLOCKS
from unfuse.runs.schema import RECORD_STAGES, SCHEMA_VERSION, SampleRecord

Schema = dict[str, Any]

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_SCALARS: Final = {float: "number", int: "integer", str: "string", bool: "boolean"}
_NULL: Final[Schema] = {"type": "null"}


def document(name: str, title: str, kind: type) -> Schema:
    """The schema of a file that holds one ``kind``."""
    definitions: dict[str, Schema] = {}
    schema = _object(kind, definitions)
    if "schema_version" in schema["properties"]:
        schema["properties"]["schema_version"] = version()
        schema["required"].append("schema_version")
    return published(name, title, schema, definitions)


def line_document() -> Schema:
    """The schema of one line of ``samples.jsonl``, which is flat where the record has a mapping of stages."""
    definitions: dict[str, Schema] = {}
    schema = _object(SampleRecord, definitions)
    given = schema["properties"]
    del given["stages"]
    properties = {name: given.pop(name) for name in BEFORE_STAGES}
    times = definitions["StageTime"]["properties"]
    for stage in RECORD_STAGES:
        for clock in CLOCKS:
            about = {**times[clock], "type": ["number", "null"]}
            about["description"] = f"{stage}: {about['description'][0].lower()}{about['description'][1:]}"
            properties[f"{stage}_{clock}"] = about
    schema["properties"] = {**properties, **given}
    _seal(schema)
    schema["allOf"] = [_no_time_alone(stage) for stage in RECORD_STAGES]
    return published("samples", "A line of samples.jsonl", schema, definitions)


def answers_document() -> Schema:
    """The schema of one line of ``answers.jsonl``."""
    definitions: dict[str, Schema] = {}
    schema = _object(AnswerRecord, definitions)
    _seal(schema)
    return published("answers", "A line of answers.jsonl", schema, definitions)


def published(name: str, title: str, schema: Schema, definitions: Mapping[str, Schema]) -> Schema:
    """A schema with its name, its version and what it refers to."""
    head = {"$schema": _DIALECT, "$id": f"urn:unfuse:{SCHEMA_VERSION}:{name}", "title": title}
    return {**head, **schema, **({"$defs": dict(sorted(definitions.items()))} if definitions else {})}


def _seal(schema: Schema) -> None:
    """A line ends with its checksum."""
    crc = {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}
    schema["properties"]["line_crc32"] = {**crc, "description": "CRC-32 of the line without this last field."}
    schema["required"].append("line_crc32")


def version() -> Schema:
    """Of ``schema_version``: every version that these schemas describe."""
    major, minor = (int(number) for number in SCHEMA_VERSION.split("."))
    return {"enum": [f"{major}.{n}" for n in range(minor + 1)]}


def schema_of(hint: Any, definitions: dict[str, Schema]) -> Schema:
    """The schema of an annotation; dataclasses go into ``definitions``."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if hint in _SCALARS:
        return {"type": _SCALARS[hint]}
    if origin in (Union, types.UnionType):
        (inner,) = (argument for argument in arguments if argument is not type(None))
        schema = schema_of(inner, definitions)
        if isinstance(schema.get("type"), str):
            return {**schema, "type": [schema["type"], "null"]}
        return {"anyOf": [schema, _NULL]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple and arguments[1:] == (...,):
        return {"type": "array", "items": schema_of(arguments[0], definitions)}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": schema_of(arguments[1], definitions)}
    assert is_dataclass(hint), hint
    name = _name(hint)
    if name not in definitions:
        definitions[name] = {}  # in its place before it is made, should it refer to itself
        definitions[name] = _object(hint, definitions)
    return {"$ref": f"#/$defs/{name}"}


def _object(kind: Any, definitions: dict[str, Schema]) -> Schema:
    hints, about = get_type_hints(kind), _docstrings(kind)
    properties = {}
    for f in fields(kind):
        schema = schema_of(hints[f.name], definitions)
        properties[f.name] = schema | ({"description": about[f.name]} if f.name in about else {})
    return {
        "description": _one_line(inspect.getdoc(kind) or ""),
        "type": "object",
        "properties": properties,
        "required": [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING],
        "additionalProperties": False,
    }


def _docstrings(kind: Any) -> dict[str, str]:
    """The string under each field, which Python itself throws away."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for this, following in zip(body.body, body.body[1:], strict=False):
        if not isinstance(this, ast.AnnAssign) or not isinstance(this.target, ast.Name):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            found[this.target.id] = _one_line(str(following.value.value))
    return found


def _no_time_alone(stage: str) -> Schema:
    """A stage's other times come with its host time."""
    host, *others = (f"{stage}_{clock}" for clock in CLOCKS)
    return {"if": {"anyOf": [_is_number(other) for other in others]}, "then": _is_number(host)}


def _is_number(name: str) -> Schema:
    return {"properties": {name: {"type": "number"}}, "required": [name]}


def _name(kind: Any) -> str:
    return str(kind.__name__)


def _one_line(text: str) -> str:
    """In JSON's words and Markdown's marks."""
    return re.sub(r"\bNone\b", "null", " ".join(text.split())).replace("``", "`")
