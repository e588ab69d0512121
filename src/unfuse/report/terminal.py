"""What ``unfuse bench`` prints: one line a sample, then the summary.

Texts from files and models are printed as they are, without markup and without control characters.
"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from unfuse.report.rows import headlines, method_lines, stage_rows
from unfuse.report.summary import FORMULAS, Summary
from unfuse.runs.schema import SampleRecord


def sample_line(index: int, record: SampleRecord) -> str:
    """The seed's fields in the seed's form, in seconds, then prefill and decode."""
    if record.status == "failed":
        return f"Sample {index}: FAILED | {printable(record.error or 'unknown')}"
    s = {name: time.host_ms / 1000 for name, time in record.stages.items()}
    generate = s["prefill"] + s["decode"]
    return (
        f"Sample {index}: S1={s['load']:.4f}s | S2={s['preprocess']:.4f}s | S3={s['encode']:.4f}s | "
        f"S4={generate:.4f}s | Total={record.total_host_ms / 1000:.4f}s | Tokens={record.output_tokens} | "
        f"prefill={s['prefill']:.4f}s | decode={s['decode']:.4f}s"
    )


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


def printable(text: str) -> str:
    """One line without control characters: a file or a model may write terminal codes."""
    return "".join(c if c.isprintable() else " " for c in text)


def _table(title: str, summary: Summary) -> Table:
    table = Table(title=Text(printable(title)), title_justify="left", box=None, padding=(0, 1), pad_edge=False)
    table.add_column("stage", no_wrap=True)
    for name in ("median ms", "95 % interval", "p99 ms", "device ms", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in stage_rows(summary):
        table.add_row(row.name, row.median, row.interval, row.p99, row.device, row.share)
    return table
