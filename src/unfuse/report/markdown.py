"""``report.md`` and comments on pull requests: tables and sentences as Markdown."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from unfuse.records.schema import Manifest
from unfuse.report.change import Change
from unfuse.report.change_text import change_table, headline, method, remarks_of, sides_of
from unfuse.report.comparison import Comparison
from unfuse.report.comparison_tables import remarks, tables
from unfuse.report.run_tables import (
    answer_table,
    energy_table,
    fact_tables,
    memory_table,
    roofline_table,
    span_table,
    stage_table,
)
from unfuse.report.run_text import FORMULAS_LINE, headlines, method_lines
from unfuse.report.summary import Summary
from unfuse.report.table import Table
from unfuse.report.text import printable


def report_markdown(manifest: Manifest, summary: Summary) -> str:
    """Return the report of one run: the summary, with everything needed to repeat and to doubt it."""
    inner = [span_table, answer_table, memory_table, energy_table, roofline_table]
    lines = [
        *_verdict(manifest, summary),
        *table_lines(stage_table(summary), level=2),
        *(f"{line}  " for line in headlines(summary)),
        "",
        *(line for form in inner if (table := form(summary)) is not None for line in table_lines(table)),
        "## How far to trust it",
        "",
        *(f"- {line}" for line in method_lines(summary)),
        "",
        f"{FORMULAS_LINE}.",
        "",
        *_failures(summary),
        *_command(manifest.command),
        *(line for table in fact_tables(manifest) for line in table_lines(table)),
    ]
    return "\n".join(lines)


def comparison_markdown(comparison: Comparison, command: Sequence[str]) -> str:
    """Return the report of several runs."""
    lines = [
        "# Comparison",
        "",
        f"**{comparison.word}** as a whole.",
        "",
        *(line for table in tables(comparison) for line in table_lines(table, level=2)),
        *(f"- {cell(line)}" for line in remarks(comparison)),
        "",
        f"{FORMULAS_LINE}.",
        "",
        *_command(command),
        "Each run has a folder of its own beside this file, with raw values, environment and report.",
        "",
    ]
    return "\n".join(lines)


def change_markdown(change: Change) -> str:
    """Return two runs, before and after, for a comment on a pull request."""
    lines = [
        f"### unfuse: B against A, {change.protocol}",
        "",
        f"**{headline(change)}**",
        "",
        *(f"- {cell(side)}" for side in sides_of(change)),
        *(f"- **{cell(remark)}**" for remark in remarks_of(change)),
        "",
        *_grid(change_table(change)),
        "",
        method(change),
    ]
    return "\n".join(lines)


def table_lines(table: Table, level: int = 3) -> list[str]:
    """Return a table under its heading, with an empty line after it."""
    notes = [line for note in table.notes for line in (note, "")]
    return [f"{'#' * level} {cell(table.title)}", "", *_grid(table), "", *notes]


def _grid(table: Table) -> list[str]:
    rule = "".join("---|" if side == "left" else "--:|" for side in table.alignments)
    return [_row(map(cell, table.columns)), f"|{rule}", *(_row(_cells(table, row)) for row in table.rows)]


def _cells(table: Table, row: Sequence[str]) -> Iterable[str]:
    return (f"**{cell(text)}**" if text in table.emphasised else cell(text) for text in row)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def cell(text: object) -> str:
    """Return a text for the cell of a table, with Markdown's special characters escaped."""
    escaped = str(text)
    for mark in "\\|`*_[":
        escaped = escaped.replace(mark, f"\\{mark}")
    return printable(escaped.replace("<", "&lt;"))


def _verdict(manifest: Manifest, summary: Summary) -> list[str]:
    verdict, notes = summary.verdict, (*manifest.model.get("notes", ()), *summary.notes)
    return [
        f"# {cell(manifest.model.get('name'))}: {manifest.protocol}",
        "",
        f"**{verdict.word}** - {summary.num_ok} samples measured, {summary.num_failed} failed, "
        f"{summary.num_warmups} warm-up repeats excluded.",
        "",
        *(f"- because: {cell(reason)}" for reason in verdict.reasons),
        *(f"- warning: {cell(warning)}" for warning in verdict.warnings),
        *(f"- note: {cell(note)}" for note in notes),
        "",
    ]


def _failures(summary: Summary) -> list[str]:
    if not summary.failures:
        return []
    return ["## Failed samples", "", *(f"- {cell(f.sample_id)}: {cell(f.error)}" for f in summary.failures), ""]


def _command(command: Sequence[str]) -> list[str]:
    """Return the command that made the report, in a block that it cannot end."""
    return ["## How it was made", "", "```", printable(shlex.join(command)).replace("```", "` ` `"), "```", ""]
