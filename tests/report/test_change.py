"""What a comparison of two runs says of known changes under noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from unfuse.errors import InputError
from unfuse.report.change import change_between, ratio_of, word_for
from unfuse.report.change_text import change_markdown, remarks_of
from unfuse.report.statistics import Ratio

PAIRS, SAMPLES = 200, 40
RIGHT, WRONG = 0.95, 0.05
"""Promised: so often a change of 3 % is found, and so seldom one is found where there is none."""


def simulated(rng, factor):
    """Two runs of the same samples: samples differ by a fifth, repeats by 1.5 %, one in twenty is disturbed."""
    work = 200 * rng.lognormal(0, 0.2, SAMPLES)

    def run(scale):
        disturbed = np.where(rng.random(SAMPLES) < 0.05, 1 + rng.exponential(0.1, SAMPLES), 1.0)
        return work * scale * rng.lognormal(0, 0.015, SAMPLES) * disturbed

    before, after = run(1.0), run(factor)
    return {str(i): x for i, x in enumerate(before)}, {str(i): x for i, x in enumerate(after)}


@pytest.mark.parametrize(("factor", "right"), [(1.03, "slower"), (1 / 1.03, "faster"), (1.0, "no difference shown")])
def test_verdicts_are_right_as_often_as_promised(factor, right):
    rng = np.random.default_rng(1)
    words = [word_for(ratio_of(*simulated(rng, factor)), 1.0) for _ in range(PAIRS)]
    assert words.count(right) >= RIGHT * PAIRS
    assert PAIRS - words.count(right) <= WRONG * PAIRS


def test_samples_are_paired_by_name():
    before = {"a": 10.0, "b": 1000.0, "c": 1.0}
    after = {"c": 2.0, "b": 2000.0, "a": 20.0, "other": 5.0}
    found = ratio_of(before, after)
    assert (found.value, found.low, found.high, found.paired) == (2.0, 2.0, 2.0, True)


def test_other_samples_are_compared_by_medians():
    found = ratio_of({"a": 1.0, "b": 3.0}, {"x": 4.0, "y": 4.0})
    assert (found.value, found.paired) == (2.0, False)


@pytest.mark.parametrize(
    ("low", "value", "high", "word"),
    [
        (1.01, 1.03, 1.05, "slower"),
        (0.99, 1.03, 1.05, "no difference shown"),  # the interval holds 1
        (1.002, 1.005, 1.008, "no difference shown"),  # certain, and below the threshold
        (0.95, 0.97, 0.99, "faster"),
        (None, 1.5, None, "no difference shown"),  # one sample shows nothing
    ],
)
def test_words(low, value, high, word):
    assert word_for(Ratio(value=value, low=low, high=high, paired=True), 1.0) == word


def test_whole_runs(manifest, make_run):
    before = make_run()
    slow = [
        replace(
            r, stages={n: replace(t, host_ms=t.host_ms * (1.5 if n == "decode" else 1)) for n, t in r.stages.items()}
        )
        for r in before
    ]
    other = replace(
        manifest,
        environment={**manifest.environment, "device_name": "another"},
        model={**manifest.model, "engine": "graphed"},
    )
    change = change_between((manifest, before), (other, slow))
    words = {each.stage: each.word for each in change.stages}
    assert words["decode"] == words["generate (S4)"] == "slower"
    assert words["load"] == words["prefill"] == "no difference shown"
    assert next(each.stage for each in change.regressions(20)) == "decode"
    assert change.regressions(60) == ()
    assert any("device_name" in line and "another" in line for line in remarks_of(change))
    assert any("engine" in line for line in remarks_of(change))
    text = change_markdown(change)
    assert text.index("not the same environment") < text.index("| decode |")
    assert change_between((manifest, before), (manifest, before)).environment == {}


def test_what_cannot_be_compared(manifest, make_run):
    with pytest.raises(InputError, match="protocols decoupled"):
        change_between((manifest, make_run()), (replace(manifest, protocol="fused"), make_run()))
    with pytest.raises(InputError, match="no measured sample"):
        change_between((manifest, []), (manifest, make_run()))


def test_a_gpus_passing_state_is_no_difference(manifest, make_run):
    def at(watts, driver):
        state = {"power.draw": watts, "temperature.gpu": watts, "driver_version": driver}
        return replace(manifest, environment={**manifest.environment, "cuda": {"state": state}})

    found = change_between((at("100 W", "1"), make_run()), (at("200 W", "2"), make_run())).environment
    assert found == {"cuda.state.driver_version": ("1", "2")}
