"""The JSON Schemas of every file that a run or a comparison leaves behind.

``python -m unfuse.report.schemas FOLDER`` writes them; ``docs/schema`` holds them as of this version.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from unfuse.report.comparison import Difference, PartResult, StageRatio
from unfuse.report.summary import Summary
from unfuse.runs.comparison_folder import ComparisonManifest
from unfuse.runs.json_schema import Schema, answers_document, document, line_document, published, schema_of, version
from unfuse.runs.schema import SCHEMA_VERSION, Manifest, Probes


def schemas() -> dict[str, Schema]:
    """By name; ``samples`` and ``answers`` are of one line."""
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
    """Writes each as ``<name>.schema.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, schema in schemas().items():
        (folder / f"{name}.schema.json").write_text(text_of(schema), encoding="utf-8")


def text_of(schema: Schema) -> str:
    """As it is written."""
    return json.dumps(schema, indent=2) + "\n"


def _summary() -> Schema:
    """Nothing reads a summary back, so its fields have no defaults; files of older versions lack the later ones."""
    schema = document("summary", "summary.json of a run", Summary)
    strings = schema_of(Mapping[str, str], {})
    own = {"schema_version": version(), "formulas": {**strings, "description": "Of the terms used here."}}
    verdict = schema["$defs"]["Verdict"]
    verdict["properties"] = {"word": {"enum": ["VALID", "INVALID"]}, **verdict["properties"]}
    verdict["required"] = list(verdict["properties"])
    schema["properties"] = {**own, **schema["properties"]}
    ours = {"properties": {"schema_version": {"const": SCHEMA_VERSION}}}
    schema |= {"if": ours, "then": {"required": [*own, *schema["required"]]}}
    schema["required"] = ["schema_version", "num_ok", "num_failed", "verdict"]
    return schema


def _comparison_summary() -> Schema:
    definitions: dict[str, Schema] = {}
    properties = {
        "schema_version": version(),
        "valid": {"type": "boolean", "description": "Whether every part is what it has to be."},
        "parts": schema_of(tuple[PartResult, ...], definitions),
        "ratios": schema_of(tuple[StageRatio, ...], definitions),
        "differences": schema_of(tuple[Difference, ...], definitions),
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
    from unfuse.throughput.summary import SHARES, RunSummary
    from unfuse.throughput.times import Bottleneck

    definitions: dict[str, Schema] = {}
    fields = schema_of(RunSummary, definitions)
    schema = definitions.pop(fields["$ref"].rpartition("/")[2])
    made = {name: {"type": "number", "description": about} for name, about in SHARES.items()}
    made["bottleneck"] = schema_of(Bottleneck, definitions)
    schema["properties"] = {"schema_version": version(), **schema["properties"], **made}
    schema["required"] = list(schema["properties"])
    return published("answers-summary", "summary.json of unfuse run", schema, definitions)


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]))
