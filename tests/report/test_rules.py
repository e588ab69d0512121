"""Rules of a run, row by row: each can hold and not hold, and names the measurement that is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

import pytest

from unfuse.records import Manifest, Noise, Probes, SampleRecord, StageTime
from unfuse.records.work_records import CountedWork, Price, Reuse, StageProducts
from unfuse.report import summarise
from unfuse.report.measured_run import MeasuredRun
from unfuse.report.rules import judge
from unfuse.report.verdict import RuleRow, Verdict

MakeRun = Callable[..., list[SampleRecord]]
QUIET = Probes(
    noise=Noise(sample_id="s0", total_host_ms=(100.0, 101.0, 99.0), e2e_host_ms=(100.0, 101.0, 99.0)),
    encoder_calls_after_encode=0,
    reuse=Reuse(sample_id="s0"),
    price=Price(sample_ids=("s0",) * 5, stages_ms=(100.0,) * 5, call_ms=(100.0,) * 5, generate_ms=(100.0,) * 5),
    counted_work=CountedWork(stages={}, output_tokens=8, source="config"),
)
NAMES = [
    "samples", "answers", "lengths", "same tokens", "nothing reused", "stages add up", "price of the split",
    "encode once", "work", "noise", "drift",
]  # fmt: skip


def statuses(manifest: Manifest, records: list[SampleRecord], probes: Probes = QUIET) -> dict[str, str]:
    verdict = summarise(manifest, records, probes).verdict
    assert all(row.limit and row.value for row in verdict.rules)
    assert len({row.rule for row in verdict.rules}) == len(verdict.rules)
    assert all(bool(row.sentences) == (row.outcome in ("fail", "warn")) for row in verdict.rules)
    return {row.rule: row.outcome for row in verdict.listed}


def test_a_good_run_passes_all(manifest: Manifest, make_run: MakeRun) -> None:
    twelve = replace(manifest, dataset={"num_samples": 12})
    assert statuses(twelve, make_run(12)) == dict.fromkeys(NAMES, "pass")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("samples", {"status": "failed", "error": "no file", "stages": {}}),
        ("answers", {"output_tokens": 0}),
        ("same tokens", {"e2e_same_tokens": False}),
        ("stages add up", {"e2e_host_ms": 2000.0}),
    ],
)
def test_each_can_fail(manifest: Manifest, make_run: MakeRun, name: str, changes: dict[str, object]) -> None:
    records = [replace(record, **changes) for record in make_run(14)]
    noiseless = replace(QUIET, noise=None)
    assert statuses(replace(manifest, dataset={"num_samples": 14}), records, noiseless)[name] == "fail"


def test_extra_work_fails(manifest: Manifest, make_run: MakeRun) -> None:
    extra = StageProducts(expected={"width 8": 1000}, executed={"width 8": 2000}, largest={"width 8": "mm [1, 8]"})
    work = CountedWork(stages={"prefill": extra}, output_tokens=8, source="config")
    verdict = summarise(manifest, make_run(), replace(QUIET, counted_work=work)).verdict
    assert not verdict.valid
    (reason,) = verdict.reasons
    assert "prefill executes extra work" in reason
    assert "mm [1, 8]" in reason


def test_encode_once_and_noise(manifest: Manifest, make_run: MakeRun) -> None:
    loud = Noise(sample_id="s0", total_host_ms=(100.0, 150.0, 60.0), e2e_host_ms=(100.0, 150.0, 60.0))
    found = statuses(manifest, make_run(), Probes(noise=loud, encoder_calls_after_encode=2))
    assert (found["encode once"], found["noise"]) == ("fail", "warn")


@pytest.mark.parametrize(
    ("calls", "outcome"), [(2, "fail"), (0, "pass"), (None, "skip")], ids=["counted", "none", "not counted"]
)
def test_a_control_is_invalid_for_one_reason(
    manifest: Manifest, make_run: MakeRun, calls: int | None, outcome: str
) -> None:
    times = {name: StageTime(host_ms=10.0) for name in ("load", "preprocess", "encode", "fused_generate")}
    records = [replace(record, stages=times, e2e_host_ms=40.0) for record in make_run()]
    control, probes = replace(manifest, protocol="reencode"), Probes(encoder_calls_after_encode=calls)
    assert statuses(control, records, probes)["encode once"] == outcome
    verdict = summarise(control, records, probes).verdict
    assert not verdict.valid
    (reason,) = verdict.reasons
    assert reason.startswith("protocol reencode is a control")


@pytest.mark.parametrize("num_failed", [0, 3])
def test_a_run_without_a_measured_sample_does_not_judge_its_balance(manifest: Manifest, num_failed: int) -> None:
    failed = [SampleRecord(sample_id=f"s{i}", status="failed", error="no file") for i in range(num_failed)]
    found = statuses(replace(manifest, dataset={"num_samples": num_failed}), failed, Probes())
    assert (found["samples"], found["stages add up"]) == ("fail", "skip")


def test_a_failed_rule_makes_a_run_invalid_without_a_sentence_too() -> None:
    row = RuleRow(rule="answers", outcome="fail", limit="at least one token a sample", value="1 without a token")
    assert Verdict(rules=(row,)).word == "INVALID"
    assert Verdict(rules=(replace(row, outcome="warn"),)).word == "VALID"


def test_drift_warns(manifest: Manifest, make_run: MakeRun) -> None:
    records = [
        replace(r, stages={**r.stages, "decode": StageTime(host_ms=900.0 + 10 * i)}) for i, r in enumerate(make_run(20))
    ]
    assert statuses(manifest, records)["drift"] == "warn"


def test_what_was_not_recorded_is_skipped(manifest: Manifest, make_run: MakeRun) -> None:
    """As in runs of the first schema, and in short ones."""
    found = statuses(manifest, make_run(e2e_same_tokens=None), Probes())
    assert {name for name, status in found.items() if status == "skip"} == {
        "same tokens", "nothing reused", "price of the split", "encode once", "work", "noise", "drift",
    }  # fmt: skip


def test_hooks_that_never_fired(manifest: Manifest, make_run: MakeRun) -> None:
    hooked = replace(manifest, protocol="hooked")
    times = {name: StageTime(host_ms=10.0) for name in ("load", "preprocess", "fused_generate")}
    blind = [replace(r, stages=times, spans={}, num_frames=5, e2e_host_ms=30.0) for r in make_run()]
    assert statuses(hooked, blind)["hooks fired"] == "fail"
    seen = [replace(r, spans={"fused_generate.tower": StageTime(host_ms=2.0)}) for r in blind]
    assert statuses(hooked, seen)["hooks fired"] == "pass"


def test_the_verdict_repeats_the_sentences_of_the_rows(manifest: Manifest, make_run: MakeRun) -> None:
    loud = Noise(sample_id="s0", total_host_ms=(100.0, 150.0, 60.0), e2e_host_ms=(100.0, 150.0, 60.0))
    verdict = summarise(manifest, make_run(output_tokens=0), Probes(noise=loud, encoder_calls_after_encode=2)).verdict
    rows = {row.rule: row.sentences for row in verdict.rules if row.sentences}
    assert verdict.reasons == (*rows["encode once"], *rows["answers"])
    assert verdict.warnings == rows["noise"]
    assert asdict(verdict.record) == {"word": "INVALID", "reasons": verdict.reasons, "warnings": verdict.warnings}


def test_other_work_invalidates_a_strict_run_only(manifest: Manifest, make_run: MakeRun) -> None:
    records = make_run(disturbances=("cpu-busy: 80 %",))
    assert summarise(manifest, records, QUIET).verdict.valid
    strict = summarise(replace(manifest, config={"strict": True}), records, QUIET).verdict
    assert [reason.startswith("not isolated: cpu-busy: 80 %") for reason in strict.reasons] == [True]
    assert strict.warnings == ()


def test_a_first_sample_without_others_to_compare(manifest: Manifest, make_run: MakeRun) -> None:
    instant = MeasuredRun(manifest=manifest, records=make_run(ms=(0.0,) * 5, e2e_host_ms=None), probes=Probes())
    assert {row.rule: row.outcome for row in judge(instant).rules}["first sample"] == "skip"


def test_device_times_that_are_host_times(manifest: Manifest, make_run: MakeRun) -> None:
    def outcome(late_ms: tuple[float, ...]) -> str:
        times = [StageTime(host_ms=900.0 + 7 * i, device_ms=900.0 + 7 * i - late) for i, late in enumerate(late_ms)]
        records = [
            replace(r, stages={**r.stages, "decode": time}) for r, time in zip(make_run(len(times)), times, strict=True)
        ]
        rules = summarise(manifest, records, QUIET).verdict.rules
        return {row.rule: row.outcome for row in rules}["device clock"]

    assert outcome((0.0,) * 8) == outcome((0.02,) * 8) == "fail"
    assert outcome((0.018, 0.024, 0.019, 0.03, 0.021, 0.017, 0.025, 0.02)) == "pass"
    assert outcome((0.02,) * 7) == "skip"


def test_reused_results(manifest: Manifest, make_run: MakeRun) -> None:
    finding = "encode of a measured sample has 0 of the 189 operators of torch of new media"
    found = replace(QUIET, reuse=Reuse(sample_id="s0", findings=(finding,)))
    verdict = summarise(manifest, make_run(), found).verdict
    assert f"results were reused: {finding}" in verdict.reasons
    unknown = replace(QUIET, reuse=Reuse(sample_id="s0", reason="the sample has no media"))
    assert statuses(manifest, make_run(), unknown)["nothing reused"] == "skip"


def test_an_impossible_number_makes_a_run_invalid(manifest: Manifest, make_run: MakeRun) -> None:
    records = make_run(6)
    assert "possible numbers" not in {row.rule for row in judge_all(manifest, records) if row.outcome == "fail"}
    twice = [*records, records[0]]
    (row,) = [row for row in judge_all(manifest, twice) if row.rule == "possible numbers"]
    assert (row.outcome, row.value) == ("fail", "1 impossible")
    assert row.sentences == ("impossible: 1 samples have more than one line: s0",)


def judge_all(manifest: Manifest, records: list[SampleRecord]) -> tuple[RuleRow, ...]:
    return judge(MeasuredRun(manifest=manifest, records=records, probes=QUIET)).rules


def test_a_finding_counts_runs_and_not_findings(manifest: Manifest, make_run: MakeRun) -> None:
    """Both reasons of throttling are findings of one rule: they are in all 6 runs, not in 12 of 6."""
    both = ("gpu-throttled: clocks held down by heat for 3 % of 1.0 s", "gpu-throttled: clocks held down by power")
    records = make_run(6, disturbances=both)
    (found,) = MeasuredRun(manifest=manifest, records=records, probes=QUIET).disturbances
    assert found.endswith("(6 of 6 runs, first at sample s0)")
    half = [replace(record, disturbances=()) if index % 2 else record for index, record in enumerate(records)]
    (found,) = MeasuredRun(manifest=manifest, records=half, probes=QUIET).disturbances
    assert found.endswith("(3 of 6 runs, first at sample s0)")
