"""What ``unfuse bench`` prints: one line a sample, then the summary.

Texts from files and models are printed as they are, without markup and without control characters.
"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from unfuse.report.claims import claimed_llm, claimed_vision
from unfuse.report.comparison import Comparison
from unfuse.report.comparison_tables import remarks, tables
from unfuse.report.rows import headlines, method_lines, stage_rows
from unfuse.report.summary import FORMULAS, Summary
from unfuse.report.text import printable
from unfuse.runs.schema import FUSED_STAGE, SampleRecord


def sample_line(index: int, record: SampleRecord, protocol: str = "decoupled") -> str:
    """The seed's fields in the seed's form, in seconds, then what the protocol knows besides.

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
    elif protocol == "reencode":
        parts += ["INVALID: S3 is paid again in S4"]
    return f"Sample {index}: {' | '.join(parts)}"


def print_line(console: Console, text: str) -> None:
    """One unwrapped line, without markup or highlighting."""
    console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


def print_summary(console: Console, title: str, summary: Summary) -> None:
    """The whole summary; fits 80 columns."""
    print_line(console, "")
    console.print(_table(title, summary))
    for line in (*headlines(summary), *method_lines(summary)):
        print_line(console, line)
    print_line(console, "Formulas: " + "; ".join(f"{name} = {text}" for name, text in FORMULAS.items()))
    for note in summary.notes:
        print_line(console, f"Note: {printable(note)}")
    for failure in summary.failures:
        print_line(console, f"Failed: {printable(failure.sample_id)}: {printable(failure.error)}")
    for warning in summary.verdict.warnings:
        print_line(console, f"Warning: {printable(warning)}")
    print_line(console, f"Samples: {summary.num_ok} ok, {summary.num_failed} failed.")
    print_line(console, f"VERDICT: {summary.verdict.word}")
    for reason in summary.verdict.reasons:
        print_line(console, f"  because: {printable(reason)}")


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Every table of a comparison, then what is to be known about its parts."""
    for each in tables(comparison):
        print_line(console, "")
        table = RichTable(
            title=Text(printable(each.title)), title_justify="left", box=None, padding=(0, 1), pad_edge=False
        )
        for index, name in enumerate(each.columns):
            table.add_column(Text(printable(name)), justify="right" if index else "left")
        for row in each.rows:
            table.add_row(*(Text(printable(text)) for text in row))
        console.print(table)
    for line in remarks(comparison):
        print_line(console, printable(line))
    print_line(console, f"VERDICT: {'VALID' if comparison.valid else 'INVALID'}")


def _table(title: str, summary: Summary) -> RichTable:
    table = RichTable(title=Text(printable(title)), title_justify="left", box=None, padding=(0, 1), pad_edge=False)
    table.add_column("stage", no_wrap=True)
    for name in ("median ms", "95 % interval", "p99 ms", "device ms", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in stage_rows(summary):
        table.add_row(row.name, row.median, row.interval, row.p99, row.device, row.share)
    return table
