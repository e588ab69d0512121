"""A figure of the page: charts that are read together, what they show in words, and their numbers as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unfuse.report.html.looks import Look
from unfuse.report.reading import ReportRun
from unfuse.report.summary import Summary

Shown = Sequence[tuple[Look, ReportRun]]
"""Runs with a summary, each with its look."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """A table of text: the first column names the row."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One chart."""

    key: str
    """Of its specification on the page."""
    title: str
    spec: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """Charts that are read together."""

    key: str
    title: str
    findings: tuple[str, ...]
    """What they show, with numbers; where there is no chart, why."""
    panels: tuple[Panel, ...] = ()
    looks: tuple[Look, ...] = ()
    """For the legend; none where there is one run."""
    stages: tuple[str, ...] = ()
    """For the legend of stages."""
    table: Grid | None = None


def summary_of(run: ReportRun) -> Summary:
    """Of a run that is shown."""
    assert run.part.summary is not None, "only runs with a summary are drawn"
    return run.part.summary


def legend(shown: Shown) -> tuple[Look, ...]:
    """None for one run."""
    return tuple(look for look, _ in shown) if len(shown) > 1 else ()


def words(stage: str) -> str:
    """A stage's name as it is read."""
    return stage.replace("_", " ")


def said(look: Look, shown: Shown, text: str) -> str:
    """A finding of one run among others, or of the only one."""
    return f"{look.label}: {text}" if len(shown) > 1 else text[0].upper() + text[1:]


def said_missing(what: str, names: Sequence[str], of: int) -> str:
    """What was not recorded by some or all of so many."""
    some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{what} not recorded: {some}." if len(names) < of else f"{what} not recorded."
