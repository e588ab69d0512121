"""The JSON Schemas of every file of a run or a comparison.

``python -m unfuse.report.schemas FOLDER`` writes them; ``docs/schema`` holds those of this version.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from unfuse.records.comparison_folder import ComparisonManifest
from unfuse.records.json_schema import (
    Schema,
    answers_document,
    document,
    line_document,
    object_schema,
    published,
    schemas_of,
    version_schema,
)
from unfuse.records.schema import SCHEMA_VERSION, Manifest, Probes
from unfuse.report.comparison import Difference, PartResult, StageRatio
from unfuse.report.summary import Summary
from unfuse.report.verdict import VerdictRecord


def schemas() -> dict[str, Schema]:
    """Return the schemas by name; ``samples`` and ``answers`` describe one line."""
    return {
        "run": document("run", "run.json", Manifest),
        "samples": line_document(),
        "probes": document("probes", "probes.json", Probes),
        "summary": _summary(),
        "comparison": document("comparison", "comparison.json", ComparisonManifest),
        "comparison-summary": _comparison_summary(),
        "answers": answers_document(),
        "answers-summary": _answers_summary(),
    }


def write_schemas(folder: Path) -> None:
    """Write each schema as ``<name>.schema.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, schema in schemas().items():
        (folder / f"{name}.schema.json").write_text(text_of(schema), encoding="utf-8")


def text_of(schema: Schema) -> str:
    """Return the text of a schema file."""
    return json.dumps(schema, indent=2) + "\n"


def _summary() -> Schema:
    """Return the schema of ``summary.json``; a file of an older version may lack fields."""
    schema = document("summary", "summary.json of a run", Summary)
    (strings,), _ = schemas_of(Mapping[str, str])
    own = {"schema_version": version_schema(), "formulas": {**strings, "description": "Of the terms used here."}}
    _, definitions = schemas_of(VerdictRecord)
    schema["$defs"]["Verdict"] = {**definitions["VerdictRecord"], "title": "Verdict"}
    del schema["$defs"]["RuleRow"]
    schema["properties"] = {**own, **schema["properties"]}
    ours = {"properties": {"schema_version": {"const": SCHEMA_VERSION}}}
    schema |= {"if": ours, "then": {"required": [*own, *schema["required"]]}}
    schema["required"] = ["schema_version", "num_ok", "num_failed", "verdict"]
    return schema


def _comparison_summary() -> Schema:
    (parts, ratios, differences), definitions = schemas_of(
        tuple[PartResult, ...], tuple[StageRatio, ...], tuple[Difference, ...]
    )
    properties = {
        "schema_version": version_schema(),
        "valid": {"type": "boolean", "description": "Whether every part is what it has to be."},
        "parts": parts,
        "ratios": ratios,
        "differences": differences,
    }
    schema: Schema = {
        "description": "Several runs, side by side.",
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return published("comparison-summary", "summary.json of a comparison", schema, definitions)


def _answers_summary() -> Schema:
    from unfuse.batch_inference.summary import SHARES, RunSummary
    from unfuse.batch_inference.times import Bottleneck

    schema, definitions = object_schema(RunSummary)
    (bottleneck,), bottleneck_definitions = schemas_of(Bottleneck)
    shares = {name: {"type": "number", "description": about} for name, about in SHARES.items()}
    schema["properties"] = {
        "schema_version": version_schema(),
        **schema["properties"],
        **shares,
        "bottleneck": bottleneck,
    }
    schema["required"] = list(schema["properties"])
    return published("answers-summary", "summary.json of unfuse run", schema, definitions | bottleneck_definitions)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m unfuse.report.schemas", description="Write the JSON Schemas of all files."
    )
    parser.add_argument("folder", type=Path)
    write_schemas(parser.parse_args().folder)
