"""Printed output: the seed's line to the character, 80 columns, and no control characters from foreign text."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from unfuse.records import Manifest, SampleRecord
from unfuse.report import print_line, print_summary, report_markdown, sample_line, summarise

MakeRecord = Callable[..., SampleRecord]
MakeRun = Callable[..., list[SampleRecord]]

HOSTILE = "\x1b[31mred\x1b[0m\r\nVERDICT: VALID\u2028[bold]x[/bold][/] :smile: \u202eevil | `a` <b> \x07"


def printed(print_to: Callable[[Console], None], *, terminal: bool = False) -> str:
    file = io.StringIO()
    print_to(Console(file=file, width=80, force_terminal=terminal, color_system="truecolor" if terminal else None))
    return file.getvalue()


def test_sample_line_is_the_seeds(make_record: MakeRecord) -> None:
    assert sample_line(0, make_record()) == (
        "Sample 0: S1=0.0085s | S2=0.0170s | S3=0.0285s | S4=0.9500s | Total=1.0040s | Tokens=512"
        " | prefill=0.0218s | decode=0.9282s"
    )


def test_failed_sample_line() -> None:
    record = SampleRecord(sample_id="a", status="failed", error="frame 3\ncannot be read")
    assert sample_line(3, record) == "Sample 3: FAILED | frame 3 cannot be read"


@pytest.mark.parametrize("error", ["x" * 500, HOSTILE, "word " * 200])
def test_a_sample_line_is_one_unwrapped_line(error: str) -> None:
    record = SampleRecord(sample_id="a", status="failed", error=error)
    out = printed(lambda console: print_line(console, sample_line(3, record)))
    assert out.count("\n") == 1
    assert len(out.splitlines()) == 1
    assert out.rstrip("\n").isprintable()


def test_ok_lines_do_not_wrap(make_record: MakeRecord) -> None:
    line = sample_line(199, make_record(ms=(1e5, 1e5, 1e5, 1e5, 1e7)))
    assert printed(lambda console: print_line(console, line)) == line + "\n"


def test_markup_is_text() -> None:
    assert printed(lambda console: print_line(console, "[bold]a[/bold] [/] :smile:")) == "[bold]a[/bold] [/] :smile:\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_the_summary_fits_80_columns(manifest: Manifest, make_run: MakeRun, terminal: bool) -> None:
    summary = summarise(manifest, make_run(ms=(8.5, 17.0, 28.5, 21.8, 123456.78)), None)
    out = printed(lambda console: print_summary(console, "demo", summary), terminal=terminal)
    assert "\u2026" not in out
    assert "123456.78" in out
    out = re.sub(r"\x1b\[[0-9;]*m", "", out)
    rows = [line for line in out.splitlines() if line.startswith(("stage", "load", "decode", "sum of", "end to"))]
    assert len(rows) == 5
    assert all(len(row) <= 80 for row in rows)


def test_no_terminal_codes_where_output_is_no_terminal(manifest: Manifest, make_run: MakeRun) -> None:
    summary = summarise(manifest, make_run(), None)
    assert "\x1b" not in printed(lambda console: print_summary(console, "demo", summary))


def test_a_hostile_text_breaks_nothing(manifest: Manifest, make_run: MakeRun) -> None:
    failed = SampleRecord(sample_id=HOSTILE, status="failed", error=HOSTILE)
    summary = summarise(manifest, [*make_run(notes=(HOSTILE,)), failed], None)
    out = printed(lambda console: print_summary(console, HOSTILE, summary))
    assert all(character.isprintable() or character == "\n" for character in out)
    assert [line for line in out.splitlines() if line.startswith("VERDICT")] == ["VERDICT: INVALID"]
    assert "[bold]x[/bold][/] :smile:" in out


def test_an_empty_run_can_be_printed(manifest: Manifest) -> None:
    out = printed(lambda console: print_summary(console, "demo", summarise(manifest, [], None)))
    assert "VERDICT: INVALID" in out
    assert "no samples" in out


def test_markdown_says_what_the_terminal_says(manifest: Manifest, make_run: MakeRun) -> None:
    failed = SampleRecord(sample_id="bad", status="failed", error="no file")
    text = report_markdown(manifest, summarise(manifest, [*make_run(), failed], None))
    assert "**INVALID**" in text
    assert "random weights: timings only" in text
    assert "unfuse bench demo --output 'my runs/a'" in text
    assert "- bad: no file" in text
    assert "| decode | 928.20 |" in text
    assert "33.3 x" in text


def test_markdown_holds_hostile_text_in_its_cells(manifest: Manifest, make_run: MakeRun) -> None:
    hostile = replace(manifest, model={**manifest.model, "name": HOSTILE}, config={"question": HOSTILE})
    failed = SampleRecord(sample_id=HOSTILE, status="failed", error=HOSTILE)
    text = report_markdown(hostile, summarise(hostile, [*make_run(), failed], None))
    assert all(character.isprintable() or character == "\n" for character in text)
    assert "\nVERDICT" not in text
    assert "<b>" not in text
