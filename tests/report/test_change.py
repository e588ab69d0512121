"""Comparison of two runs with known changes under noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from unfuse.errors import InputError
from unfuse.records import Noise, Probes, StageTime
from unfuse.report.change import MIN_SAMPLES, Side, change_between, ratio_of, word_for
from unfuse.report.change_text import headline, remarks_of, sides_of
from unfuse.report.markdown import change_markdown
from unfuse.report.statistics import Ratio

PAIRS, SAMPLES = 200, 40
RIGHT = 0.95
"""Documented: share of cases in which a change of 3 % is found, and in which no change is found if there is none."""
AT_THE_THRESHOLD = 0.95
"""Documented: share of cases without a finding if two runs of one program differ as a whole by the threshold."""


def simulated(rng, factor, *, samples=SAMPLES, jitter=0.005):
    """Two runs of the same samples.

    Samples differ by a fifth, repeats by 1.5 %, one in twenty is disturbed, and the runs differ as a whole, as on a
    warmer device, by up to half a percent.
    """
    work = 200 * rng.lognormal(0, 0.2, samples)

    def run(scale):
        disturbed = np.where(rng.random(samples) < 0.05, 1 + rng.exponential(0.1, samples), 1.0)
        return work * scale * rng.lognormal(0, 0.015, samples) * disturbed

    before, after = run(1.0), run(factor * (1 + rng.uniform(-jitter, jitter)))
    return {str(i): x for i, x in enumerate(before)}, {str(i): x for i, x in enumerate(after)}


def words(rng, factor, *, samples=SAMPLES, **how):
    found = (ratio_of(*simulated(rng, factor, samples=samples, **how)) for _ in range(PAIRS))
    return [word_for(each, 1.0, samples) for each in found]


@pytest.mark.parametrize(("factor", "right"), [(1.03, "slower"), (1 / 1.03, "faster"), (1.0, "no difference shown")])
def test_verdicts_are_right_as_often_as_promised(factor, right):
    assert words(np.random.default_rng(1), factor).count(right) >= RIGHT * PAIRS


@pytest.mark.parametrize("factor", [1.01, 1 / 1.01])
def test_what_differs_as_a_whole_by_the_threshold_is_no_change(factor):
    found = words(np.random.default_rng(2), factor, jitter=0)
    assert found.count("no difference shown") >= AT_THE_THRESHOLD * PAIRS


@pytest.mark.parametrize("samples", [2, 3, 5, MIN_SAMPLES, 10])
def test_few_samples_raise_no_false_alarm(samples):
    found = words(np.random.default_rng(3), 1.0, samples=samples)
    assert found.count("no difference shown") >= RIGHT * PAIRS


def test_samples_are_paired_by_name():
    before = {"a": 10.0, "b": 1000.0, "c": 1.0}
    after = {"c": 2.0, "b": 2000.0, "a": 20.0, "other": 5.0}
    found = ratio_of(before, after)
    assert (found.value, found.low, found.high, found.paired) == (2.0, 2.0, 2.0, True)


def test_pairing_sees_what_medians_do_not():
    """Samples differ by a factor of a hundred; each one is 3 % slower."""
    before = {str(i): 10.0 * 1.6**i for i in range(10)}
    after = {name: 1.03 * ms for name, ms in before.items()}
    assert word_for(ratio_of(before, after), 1.0, 10) == "slower"
    others = {f"other {name}": ms for name, ms in after.items()}
    assert word_for(ratio_of(before, others), 1.0, 10) == "no difference shown"


def test_other_samples_are_compared_by_medians():
    found = ratio_of({"a": 1.0, "b": 3.0}, {"x": 4.0, "y": 4.0})
    assert (found.value, found.paired) == (2.0, False)


def test_nothing_to_divide():
    assert ratio_of({"a": 0.0}, {"a": 1.0}) is None
    assert ratio_of({}, {"a": 1.0}) is None


@pytest.mark.parametrize(
    ("low", "value", "high", "samples", "word"),
    [
        (1.011, 1.03, 1.05, 6, "slower"),
        (1.011, 1.03, 1.05, 5, "no difference shown"),  # too few samples for any finding
        (1.009, 1.03, 1.05, 6, "no difference shown"),  # the interval holds changes below the threshold
        (1.002, 1.005, 1.008, 6, "no difference shown"),  # certain, and below the threshold
        (0.95, 0.97, 0.985, 6, "faster"),
        (0.95, 0.97, 0.995, 6, "no difference shown"),
        (None, 1.5, None, 6, "no difference shown"),
    ],
)
def test_words(low, value, high, samples, word):
    assert word_for(Ratio(value=value, low=low, high=high, paired=True), 1.0, samples) == word


@pytest.fixture
def side(manifest, make_run):
    def make(records=None, *, name="A", probes=None, **changes):
        return Side(
            name=name,
            manifest=replace(manifest, **changes),
            records=tuple(records if records is not None else make_run(8)),
            probes=probes,
        )

    return make


def slower(records, stage, factor):
    def one(record):
        times = {n: StageTime(host_ms=t.host_ms * (factor if n == stage else 1)) for n, t in record.stages.items()}
        return replace(record, stages=times, e2e_host_ms=sum(t.host_ms for t in times.values()))

    return [one(record) for record in records]


def test_whole_runs(side, manifest, make_run):
    before = make_run(8)
    other = side(
        slower(before, "decode", 1.5),
        environment={**manifest.environment, "device_name": "another"},
        model={**manifest.model, "engine": "graphed"},
    )
    change = change_between(side(before), other)
    found = {each.stage: each.word for each in change.stages}
    assert found["decode"] == found["generate (S4)"] == found["sum of stages"] == found["end to end"] == "slower"
    assert found["load"] == found["prefill"] == "no difference shown"
    assert next(each.stage for each in change.regressions(20)) == "decode"
    assert change.regressions(60) == ()
    assert change.environment.values == {"device_name": ("a cpu", "another")}
    assert change.work.one_sided == change.environment.one_sided == ()
    assert change.work.values == {"engine": ("None", "graphed")}
    text = change_markdown(change)
    assert text.index("not the same work") < text.index("not the same environment") < text.index("| decode |")
    assert "| decode | 928.200 | 1392.300 | 1.500 | 1.500 .. 1.500 | **slower** |" in text
    assert headline(change).startswith("Slower: decode +50.0 %, ")
    same = change_between(side(before), side(before))
    assert same.environment.values == same.work.values == {}
    assert headline(same) == "No difference shown in any stage."


def test_medians_are_of_the_samples_that_are_compared(side, make_run, make_record):
    """A sample that only A measured moves no number beside the ratio."""
    before = [*make_run(8), make_record("huge", ms=(1e6,) * 5), make_record("huge too", ms=(1e6,) * 5)]
    load = change_between(side(before), side(make_run(8))).stages[0]
    assert (load.samples, load.before_ms, load.after_ms, load.ratio.value) == (8, 8.5, 8.5, 1.0)


def test_what_cannot_be_compared(side):
    with pytest.raises(InputError, match="protocols decoupled"):
        change_between(side(), side(protocol="fused"))
    with pytest.raises(InputError, match="no measured sample"):
        change_between(side([]), side())


def test_a_run_noisier_than_it_may_be_raises_the_threshold(side, make_run):
    def noisy(spread):
        ms = tuple(1000 * (1 + spread * turn) for turn in (-1, 0, 1))
        return Probes(noise=Noise(sample_id="s0", total_host_ms=ms, e2e_host_ms=ms))

    slow = slower(make_run(8), "decode", 1.15)
    assert change_between(side(probes=noisy(0.02)), side(slow)).regressions(5)
    change = change_between(side(probes=noisy(0.2)), side(slow))
    assert change.noise_threshold_pct == pytest.approx(20)
    assert change.regressions(5) == ()
    assert any("warning of A: noise" in line and "20.0 %" in line for line in remarks_of(change))


def test_doubts_are_listed(side, make_run, make_record):
    records = [*make_run(7), make_record("s7", status="failed", error="out of memory")]
    change = change_between(side(), side(records, name="runs/b"))
    assert change.broken == ("s7",)
    lines = remarks_of(change)
    assert lines[0] == "not the same work: samples measured: 8 (A), 7 (B)"
    assert "B is INVALID: 1 of 8 samples failed: s7" in lines
    assert "failed in B and measured in A: s7" in lines
    assert sides_of(change)[1].startswith("B: runs/b (r, demo, unfuse 0.1.0")


def test_a_strangers_text_breaks_no_table(side, manifest):
    hostile = "\x1b[31m|<b>\n# x"
    change = change_between(side(name=hostile), side(model={**manifest.model, "name": hostile}))
    assert all(line.isprintable() for line in (*remarks_of(change), *sides_of(change)))
    text = change_markdown(change)
    assert all(line.isprintable() for line in text.splitlines())
    assert "<b>" not in text
