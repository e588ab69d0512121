"""Samples, summaries and tables on the terminal.

Texts from files and models are printed as they are, without markup and without control characters.
"""

from __future__ import annotations

from dataclasses import replace

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from unfuse.records.schema import FUSED_STAGE, SampleRecord
from unfuse.report.change import Change
from unfuse.report.change_text import change_table, headline, method, remarks_of, sides_of
from unfuse.report.claims import claimed_llm, claimed_vision
from unfuse.report.comparison import Comparison
from unfuse.report.comparison_tables import remarks, tables
from unfuse.report.run_tables import stage_table
from unfuse.report.run_text import FORMULAS_LINE, headlines, method_lines
from unfuse.report.summary import Summary
from unfuse.report.table import Table
from unfuse.report.text import printable
from unfuse.report.verdict import CONTROL_PROTOCOL, word_of


def sample_line(index: int, record: SampleRecord, protocol: str = "decoupled") -> str:
    """Return the seed's fields in the seed's form, in seconds, then the protocol's own.

    ``fused`` has three stages: its S3 is the whole ``generate``.
    """
    if record.status == "failed":
        return f"Sample {index}: FAILED | {printable(record.error or 'unknown')}"
    s = {name: time.host_ms / 1000 for name, time in record.stages.items()}
    vision, llm = claimed_vision(record, protocol), claimed_llm(record, protocol)
    later = [s[FUSED_STAGE]] if protocol == "fused" else [ms / 1000 if ms is not None else 0.0 for ms in (vision, llm)]
    parts = [f"S{i}={seconds:.4f}s" for i, seconds in enumerate((s["load"], s["preprocess"], *later), start=1)]
    parts += [f"Total={record.total_host_ms / 1000:.4f}s", f"Tokens={record.output_tokens}"]
    if protocol == "decoupled":
        parts += [f"prefill={s['prefill']:.4f}s", f"decode={s['decode']:.4f}s"]
    elif protocol == "hooked":
        parts += [f"generate={s[FUSED_STAGE]:.4f}s", "S3 by hooks"]
    elif protocol == CONTROL_PROTOCOL:
        parts += [f"{word_of(valid=False)}: S3 is paid again in S4"]
    return f"Sample {index}: {' | '.join(parts)}"


def print_line(console: Console, text: str) -> None:
    """Print one unwrapped line, without markup or highlighting."""
    console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


def print_table(console: Console, table: Table) -> None:
    """Print a table under its heading, with its notes."""
    grid = RichTable(
        title=Text(printable(table.title)) if table.title else None,
        title_justify="left",
        box=None,
        padding=(0, 1),
        pad_edge=False,
    )
    for name, side in zip(table.columns, table.alignments, strict=True):
        grid.add_column(Text(printable(name)), justify=side)
    for row in table.rows:
        grid.add_row(*(Text(printable(text)) for text in row))
    console.print(grid)
    for note in table.notes:
        print_line(console, printable(note))


def print_summary(console: Console, title: str, summary: Summary) -> None:
    """Print the summary of a run; its table fits 80 columns."""
    table = stage_table(summary).only("stage", "median ms", "95 % interval", "p99 ms", "device ms", "share")
    print_line(console, "")
    print_table(console, replace(table, title=title))
    lines = [
        *headlines(summary),
        *method_lines(summary),
        FORMULAS_LINE,
        *(f"Note: {note}" for note in summary.notes),
        *(f"Failed: {failure.sample_id}: {failure.error}" for failure in summary.failures),
        *(f"Warning: {warning}" for warning in summary.verdict.warnings),
        f"Samples: {summary.num_ok} ok, {summary.num_failed} failed.",
        f"VERDICT: {summary.verdict.word}",
        *(f"  because: {reason}" for reason in summary.verdict.reasons),
    ]
    for line in lines:
        print_line(console, printable(line))


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Print every table of a comparison, then the notes about its parts."""
    for table in tables(comparison):
        print_line(console, "")
        print_table(console, table)
    for line in (*remarks(comparison), f"VERDICT: {comparison.word}"):
        print_line(console, printable(line))


def print_change(console: Console, change: Change) -> None:
    """Print two runs, before and after, stage by stage."""
    for line in (*sides_of(change), *remarks_of(change), ""):
        print_line(console, line)
    print_table(console, change_table(change))
    for line in (method(change), headline(change)):
        print_line(console, line)
