"""Quality of answers: counted, with intervals, and only if there is something to judge."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from unfuse.report import Part, compare, comparison_markdown, print_summary, report_markdown, summarise
from unfuse.report.quality import proportion, quality

REFERENCE = "Two objects move in this scene: a disc moves up and a bar moves down. The camera stands still."
WRONG = REFERENCE.replace("a bar moves down", "a bar moves up")


def test_counts_by_hand():
    found = quality([(REFERENCE, REFERENCE), (REFERENCE, WRONG), ("A street in the rain.", REFERENCE)])
    assert found.answers == 2
    assert (found.exact.right, found.exact.asked) == (1, 2)
    assert {n: (s.right, s.asked) for n, s in found.attributes.items()} == {
        "count": (2, 2), "shape": (2, 2), "direction": (3, 4), "camera": (2, 2),
    }  # fmt: skip
    assert quality([("A street in the rain.", "x")]) is None
    assert quality([]) is None


def test_interval_is_clopper_pearson():
    found = proportion(95, 100)
    assert found.pct == 95
    assert (found.low_pct, found.high_pct) == pytest.approx((88.72, 98.36), abs=0.01)
    assert proportion(0, 3).low_pct == 0
    assert proportion(3, 3).high_pct == 100


def test_reports_say_how_right_answers_are(manifest, make_run):
    records = make_run(reference=REFERENCE, text=REFERENCE)
    summary = summarise(manifest, records, None)
    file = io.StringIO()
    print_summary(Console(file=file, width=80), "t", summary)
    assert "Answers: 6 of 6, 100.0 % [54.1, 100.0] right in every attribute (count 6/6," in file.getvalue()
    assert "| direction | 12 of 12, 100.0 % | 73.5 .. 100.0 % |" in report_markdown(manifest, summary)
    part = Part(model="m", protocol="decoupled", manifest=manifest, records=tuple(records), summary=summary)
    assert "Answers against the reference answers" in comparison_markdown(compare([part]), ["unfuse"])


def test_no_quality_is_reported_where_nothing_can_be_judged(manifest, make_run):
    from dataclasses import replace

    for own, records in (
        (manifest, make_run()),
        (manifest, make_run(reference="A street in the rain.")),
        (replace(manifest, config={"output_length": 46}), make_run(reference=REFERENCE, text=REFERENCE)),
    ):
        summary = summarise(own, records, None)
        assert summary.quality is None
        report = report_markdown(own, summary)
        assert not any(words in report for words in ("reference answers", "right in every attribute"))
