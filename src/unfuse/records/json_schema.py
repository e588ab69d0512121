"""JSON Schema (draft 2020-12) of a record type, by msgspec, with the docstrings under its fields as descriptions.

Every value that ``conversion.from_plain`` accepts fits the schema. A schema describes every minor version up
to the present one: a field with a default may be missing, as it is in files of older versions.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, Final, get_args, get_type_hints

import msgspec

from unfuse.records.answers_file import AnswerRecord
from unfuse.records.samples_file import CLOCKS, FIELDS_BEFORE_STAGES
from unfuse.records.schema import RECORD_STAGES, SCHEMA_VERSION, SampleRecord

Schema = dict[str, Any]

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def document(name: str, title: str, kind: type) -> Schema:
    """Return the schema of a file that holds one ``kind``."""
    schema, definitions = object_schema(kind)
    if "schema_version" in schema["properties"]:
        schema["properties"]["schema_version"] = version_schema()
        schema["required"].append("schema_version")
    return published(name, title, schema, definitions)


def line_document() -> Schema:
    """Return the schema of one line of ``samples.jsonl``. The line is flat, but the record has a mapping of stages."""
    schema, definitions = object_schema(SampleRecord)
    fields = schema["properties"]
    del fields["stages"]
    properties = {name: fields.pop(name) for name in FIELDS_BEFORE_STAGES}
    times = definitions["StageTime"]["properties"]
    for stage in RECORD_STAGES:
        for clock in CLOCKS:
            text = times[clock]["description"]
            description = f"{stage}: {text[0].lower()}{text[1:]}"
            properties[f"{stage}_{clock}"] = {"type": ["number", "null"], "description": description}
    schema["properties"] = {**properties, **fields}
    _add_checksum(schema)
    schema["allOf"] = [_requires_host_time(stage) for stage in RECORD_STAGES]
    return published("samples", "A line of samples.jsonl", schema, definitions)


def answers_document() -> Schema:
    """Return the schema of one line of ``answers.jsonl``."""
    schema, definitions = object_schema(AnswerRecord)
    _add_checksum(schema)
    return published("answers", "A line of answers.jsonl", schema, definitions)


def published(name: str, title: str, schema: Schema, definitions: Mapping[str, Schema]) -> Schema:
    """Return a schema with its name, its version and its definitions."""
    head = {"$schema": _DIALECT, "$id": f"urn:unfuse:{SCHEMA_VERSION}:{name}", "title": title}
    return {**head, **schema, **({"$defs": dict(sorted(definitions.items()))} if definitions else {})}


def version_schema() -> Schema:
    """Return the schema of ``schema_version``: every version that these schemas describe."""
    major, minor = (int(number) for number in SCHEMA_VERSION.split("."))
    return {"enum": [f"{major}.{n}" for n in range(minor + 1)]}


def object_schema(kind: type) -> tuple[Schema, dict[str, Schema]]:
    """Return the schema of a dataclass, and the definitions that it refers to."""
    _, definitions = schemas_of(kind)
    schema = definitions.pop(kind.__name__)
    del schema["title"]
    return schema, definitions


def schemas_of(*hints: Any) -> tuple[tuple[Schema, ...], dict[str, Schema]]:
    """Return the schemas of annotations, and their dataclasses by name, with descriptions and no further fields."""
    schemas, definitions = msgspec.json.schema_components(hints, ref_template="#/$defs/{name}")
    kinds: dict[str, Any] = {}
    for hint in hints:
        _collect_dataclasses(hint, kinds)
    for name, kind in kinds.items():
        schema = definitions[name]
        schema["additionalProperties"] = False
        schema["description"] = _one_line(inspect.getdoc(kind) or "")
        for field, text in _docstrings(kind).items():
            schema["properties"][field]["description"] = text
    return schemas, definitions


def _collect_dataclasses(hint: Any, found: dict[str, Any]) -> None:
    if isinstance(hint, type) and is_dataclass(hint) and hint not in found.values():
        found[hint.__name__] = hint
        for each in get_type_hints(hint).values():
            _collect_dataclasses(each, found)
    for each in get_args(hint):
        _collect_dataclasses(each, found)


def _docstrings(kind: Any) -> dict[str, str]:
    """Return the string under each field: Python discards these strings, so read them from the source."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for this, following in zip(body.body, body.body[1:], strict=False):
        if not isinstance(this, ast.AnnAssign) or not isinstance(this.target, ast.Name):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            found[this.target.id] = _one_line(str(following.value.value))
    return found


def _add_checksum(schema: Schema) -> None:
    """Add the checksum, the last field of a line."""
    crc = {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}
    schema["properties"]["line_crc32"] = {**crc, "description": "CRC-32 of the line without this last field."}
    schema["required"].append("line_crc32")


def _requires_host_time(stage: str) -> Schema:
    """Return the rule that a stage's other times come with its host time."""
    host, *others = (f"{stage}_{clock}" for clock in CLOCKS)
    return {"if": {"anyOf": [_is_number(other) for other in others]}, "then": _is_number(host)}


def _is_number(name: str) -> Schema:
    return {"properties": {name: {"type": "number"}}, "required": [name]}


def _one_line(text: str) -> str:
    """Return a docstring in JSON's words and Markdown's marks."""
    return re.sub(r"\bNone\b", "null", " ".join(text.split())).replace("``", "`")
