"""Price of the split: judged beside the engine's own call, and under ``eager`` beside Hugging Face's generate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from unfuse.records import Probes
from unfuse.records.work_records import Price
from unfuse.report import summarise
from unfuse.report.price import price_line, price_summary

RNG = np.random.default_rng(0)


def price(stages=100.0, call=100.0, generate=110.0, turns=16, noise=0.01):
    def times(ms):
        return tuple(float(ms * factor) for factor in RNG.lognormal(0, noise, turns))

    return Price(
        sample_ids=tuple("abcdefgh" * 8)[:turns], stages_ms=times(stages), call_ms=times(call),
        generate_ms=times(generate),
    )  # fmt: skip


def faults(price, engine="eager"):
    return list(price_summary(price, engine).faults())


@pytest.mark.parametrize("engine", ["eager", "graphed", "vllm"])
def test_a_split_without_a_price(engine):
    assert faults(price(), engine) == []
    assert faults(price(noise=0.3), engine) == []


def test_the_stages_may_not_take_longer_than_whole_calls():
    for engine in ("eager", "graphed"):
        assert (
            "the stages take longer than the engine's own call: +" in faults(price(stages=130, generate=200), engine)[0]
        )
    found = faults(price(stages=130, call=130, generate=100))
    assert len(found) == 2
    assert "the stages take longer than Hugging Face's generate" in found[0]
    assert "encode and generate take longer than Hugging Face's generate" in found[1]


def test_under_another_engine_the_time_of_generate_is_information():
    slow = price(stages=130, call=130, generate=100)
    assert faults(slow, "graphed") == []
    assert "beside Hugging Face's generate (for information)" in price_line(price_summary(slow, "graphed"))


def test_a_call_that_does_more_than_the_stages():
    """Such as a slow ``tokenize``, which the stages do not call."""
    (fault,) = faults(price(call=130, generate=200))
    assert fault.startswith("the engine's own call takes longer than the stages")


def test_two_percent_are_allowed():
    assert faults(price(stages=101.5, call=100, generate=110, noise=0.001)) == []
    assert len(faults(price(stages=102.5, call=100, generate=110, noise=0.001))) == 1


def test_one_interrupt_hides_nothing():
    found = price(stages=130, call=130, generate=100)
    assert faults(replace(found, generate_ms=(500.0, *found.generate_ms[1:])))


def test_a_run_with_a_price_is_invalid(manifest, make_run):
    eager = replace(manifest, model={**manifest.model, "engine": "eager"})
    for stages, word in ((130, "fail"), (100, "pass")):
        summary = summarise(eager, make_run(), Probes(price=price(stages=stages, call=stages)))
        assert {row.rule: row.outcome for row in summary.verdict.listed}["price of the split"] == word
        assert any("longer than Hugging Face's generate" in r for r in summary.verdict.reasons) == (word == "fail")


def test_no_price(manifest, make_run):
    for probes, words in (
        (Probes(), "not recorded"),
        (Probes(price=Price(reason="not requested: --balance-seconds 0")), "not requested"),
        (Probes(price=price(turns=4)), "4 turns are too few to say"),
    ):
        rows = summarise(manifest, make_run(), probes).verdict.rules
        (row,) = (row for row in rows if row.rule == "price of the split")
        assert row.outcome == "skip"
        assert words in row.value
