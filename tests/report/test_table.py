"""One table, the same rows in every renderer."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from unfuse.report.html.page import environment
from unfuse.report.markdown import table_lines
from unfuse.report.table import Table, text_columns
from unfuse.report.terminal import print_table

TABLE = Table(
    title="Times",
    columns=("stage", "ms", "verdict"),
    rows=(("load", "1.00", "slower"), ("decode", "20.00", "no difference")),
    align="lrl",
    emphasised=("slower",),
    notes=("Medians.",),
)


def terminal(table: Table) -> str:
    file = io.StringIO()
    print_table(Console(file=file, width=80), table)
    return file.getvalue()


def html(table: Table) -> str:
    page = environment().from_string('{% from "macros.html.j2" import grid %}{{ grid(table) }}')
    return page.render(table=table)


def test_terminal() -> None:
    assert [line.rstrip() for line in terminal(TABLE).splitlines()] == [
        "Times", "stage      ms  verdict", "load     1.00  slower", "decode  20.00  no difference", "Medians.",
    ]  # fmt: skip


def test_markdown() -> None:
    assert table_lines(TABLE) == [
        "### Times", "", "| stage | ms | verdict |", "|---|--:|---|", "| load | 1.00 | **slower** |",
        "| decode | 20.00 | no difference |", "", "Medians.", "",
    ]  # fmt: skip


def test_html() -> None:
    text = html(TABLE)
    assert "<caption>Times</caption>" in text
    assert re.findall(r"<th scope=\"(?:col|row)\">([^<]*)</th>", text) == ["stage", "ms", "verdict", "load", "decode"]
    assert re.findall(r"<td class=\"number\">([^<]*)</td>", text) == ["1.00", "20.00"]
    assert re.findall(r"<td>([^<]*)</td>", text) == ["slower", "no difference"]
    assert "<p>Medians.</p>" in text


def test_results_of_checks_have_their_colour() -> None:
    checks = Table(
        title="checks", columns=("check", "result"), rows=(("noise", "warn"),), kind="checks", align=text_columns(2)
    )
    assert '<td class="status warn">warn</td>' in html(checks)


@pytest.mark.parametrize("render", [terminal, lambda table: "\n".join(table_lines(table)), html])
def test_a_strangers_text_stays_a_text(render) -> None:
    hostile = "\x1b[31m[bold]|<b>"
    text = render(Table(title=hostile, columns=(hostile,), rows=((hostile,),)))
    assert all(character.isprintable() or character == "\n" for character in text)
    assert "<b>" not in text or render is terminal
    assert text.count("bold") >= 3


def test_some_columns_keep_their_alignment() -> None:
    part = TABLE.only("verdict", "ms")
    assert (part.columns, part.rows[0], part.alignments) == (("verdict", "ms"), ("slower", "1.00"), ("left", "right"))
