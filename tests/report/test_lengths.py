"""Lengths of answers: each kind of fault, beside answers that have none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from unfuse.report import summarise
from unfuse.report.lengths import length_faults

END = 2


@pytest.fixture
def natural(manifest):
    model = {**manifest.model, "end_ids": [END, 9], "max_positions": 2048}
    return replace(manifest, config={"max_new_tokens": 8}, model=model)


@pytest.fixture
def exact(natural):
    return replace(natural, config={"max_new_tokens": 512, "output_length": 8})


def answer(make_record, token_ids, stop_reason, **changes):
    fields = {"token_ids": tuple(token_ids), "output_tokens": len(token_ids), "stop_reason": stop_reason, **changes}
    return make_record(**fields)


@pytest.mark.parametrize(
    ("token_ids", "stop_reason"),
    [([5, 6, END], "eos"), ([5, 6, 9], "eos"), ([5] * 8, "length"), ([5] * 7 + [END], "eos")],
)
def test_sound_answers(natural, make_record, token_ids, stop_reason):
    assert length_faults(natural, [answer(make_record, token_ids, stop_reason)]) == ()


@pytest.mark.parametrize(
    ("token_ids", "stop_reason", "changes", "words"),
    [
        ([5, 6, 7], "length", {}, "stopped early: fewer than 8 tokens"),
        ([5, 6, 7], "eos", {}, "their last token is none"),
        ([], "eos", {"output_tokens": 3}, "their last token is none"),
        ([5, END, 7, 7, 7, 7, 7, 7], "length", {}, "count tokens after their end token"),
        ([5, END, END], "eos", {}, "count tokens after their end token"),
        ([5] * 9, "length", {}, "are longer than the 8 tokens of --max-new-tokens"),
        ([5] * 7, "length", {"output_tokens": 8}, "count other tokens than they list"),
        ([5] * 8, "length", {"output_tokens": 7}, "count other tokens than they list"),
    ],
)
def test_faults_of_natural_answers(natural, make_record, token_ids, stop_reason, changes, words):
    records = [
        answer(make_record, [5, END], "eos"),
        answer(make_record, token_ids, stop_reason, sample_id="b", **changes),
    ]
    faults = length_faults(natural, records)
    assert any(words in fault and fault.startswith("1 of 2 answers") and fault.endswith(": b") for fault in faults), (
        faults
    )
    verdict = summarise(natural, records, None).verdict
    assert set(faults) <= set(verdict.reasons)


@pytest.mark.parametrize("token_ids", [[5] * 7, [5] * 9, [5] * 7 + [END, END]])
def test_other_lengths_than_the_exact_one(exact, make_record, token_ids):
    faults = length_faults(exact, [answer(make_record, token_ids, "length")])
    assert "do not have the 8 tokens of --output-length" in faults[0]


def test_an_exact_length_has_no_end(exact, make_record):
    assert length_faults(exact, [answer(make_record, [5] * 8, "length")]) == ()
    (fault,) = length_faults(exact, [answer(make_record, [5, END, *[5] * 6], "length")])
    assert "after their end token" in fault


def test_an_answer_may_end_where_the_positions_do(natural, make_record):
    full = answer(make_record, [5, 6, 7], "length", text_tokens=1975, media_tokens=70)
    assert length_faults(natural, [full]) == ()
    assert length_faults(natural, [replace(full, text_tokens=1974)])


def test_older_runs_are_judged_by_what_they_recorded(manifest, make_record):
    assert length_faults(manifest, [make_record()]) == ()
    assert length_faults(manifest, [make_record(output_tokens=513)])
