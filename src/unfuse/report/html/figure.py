"""A figure of the page: charts that are read together, findings in words, and the numbers as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from unfuse.report.html.looks import Look
from unfuse.report.reading import ReportRun
from unfuse.report.summary import Summary
from unfuse.report.table import Table
from unfuse.report.text import some

LookedRuns = Sequence[tuple[Look, ReportRun]]
"""Runs with a summary, each with its look."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One chart."""

    key: str
    """Key of its specification on the page."""
    title: str
    spec: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """Charts that are read together."""

    key: str
    title: str
    findings: tuple[str, ...]
    """Findings with numbers; without a chart, the reason."""
    panels: tuple[Panel, ...] = ()
    looks: tuple[Look, ...] = ()
    """For the legend; none if there is one run."""
    stages: tuple[str, ...] = ()
    """For the legend of stages."""
    table: Table | None = None


def summary_of(run: ReportRun) -> Summary:
    """Return the summary of a run that is drawn."""
    assert run.part.summary is not None, "only runs with a summary are drawn"
    return run.part.summary


def legend(runs: LookedRuns) -> tuple[Look, ...]:
    """Return the looks of several runs; one run needs no legend."""
    return tuple(look for look, _ in runs) if len(runs) > 1 else ()


def words(stage: str) -> str:
    """Return a stage's name as it is read."""
    return stage.replace("_", " ")


def finding(look: Look, runs: LookedRuns, text: str) -> str:
    """Return a finding of one run among others, or of the only one."""
    return f"{look.label}: {text}" if len(runs) > 1 else text[0].upper() + text[1:]


def missing_finding(quantity: str, names: Sequence[str], count: int) -> str:
    """Return that a quantity was not recorded by some or all of ``count`` runs."""
    return f"{quantity} not recorded: {some(names, most=3)}." if len(names) < count else f"{quantity} not recorded."


def stacked(title: str, runs: LookedRuns, form: Callable[[Summary], Table | None]) -> Table | None:
    """Return one table of several runs, with the name of the run in the first column; None if no run has the table."""
    tables = [(look.label, table) for look, run in runs if (table := form(summary_of(run))) is not None]
    if not tables:
        return None
    first = tables[0][1]
    return replace(
        first,
        title=title,
        columns=("run", *first.columns),
        rows=tuple((label, words(row[0]), *row[1:]) for label, table in tables for row in table.rows),
        align="l" + "".join(side[0] for side in first.alignments),
        notes=(),
    )
