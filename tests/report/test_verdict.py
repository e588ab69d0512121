"""Every reason can be met and can be missed; noise and drift only warn."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from unfuse.records import Manifest, Noise, Probes, SampleRecord
from unfuse.report import summarise

MakeRecord = Callable[..., SampleRecord]
MakeRun = Callable[..., list[SampleRecord]]

QUIET = Probes(noise=Noise(sample_id="s0", total_host_ms=(100.0, 101.0, 99.0), e2e_host_ms=(100.0, 101.0, 99.0)))


def test_a_good_run_is_valid(manifest: Manifest, make_run: MakeRun) -> None:
    verdict = summarise(manifest, make_run(), QUIET).verdict
    assert verdict.valid
    assert verdict.word == "VALID"
    assert verdict.reasons == ()
    assert verdict.warnings == ()


def test_no_samples(manifest: Manifest, make_run: MakeRun) -> None:
    for records in ([], make_run(warmup=True)):
        verdict = summarise(manifest, records, None).verdict
        assert verdict.word == "INVALID"
        assert "no samples" in verdict.reasons


def test_failed_samples_are_counted_and_named(manifest: Manifest, make_run: MakeRun) -> None:
    failed = [SampleRecord(sample_id=f"bad{i}", status="failed", error="no file") for i in range(7)]
    summary = summarise(manifest, make_run() + failed, QUIET)
    (reason,) = summary.verdict.reasons
    assert "7 of 13 samples failed" in reason
    assert "bad0" in reason
    assert [f.sample_id for f in summary.failures] == [f"bad{i}" for i in range(7)]


def test_every_sample_failed(manifest: Manifest) -> None:
    summary = summarise(manifest, [SampleRecord(sample_id="a", status="failed", error="x")], None)
    assert not summary.verdict.valid
    assert summary.total is None


@pytest.mark.parametrize("tokens", [0, None])
def test_zero_tokens(manifest: Manifest, make_run: MakeRun, make_record: MakeRecord, tokens: int | None) -> None:
    verdict = summarise(manifest, [*make_run(), make_record("mute", output_tokens=tokens)], QUIET).verdict
    (reason,) = verdict.reasons
    assert "zero output tokens" in reason
    assert "mute" in reason


def test_stages_that_do_not_add_up(manifest: Manifest, make_run: MakeRun) -> None:
    verdict = summarise(manifest, make_run(e2e_host_ms=1100.0), None).verdict
    (reason,) = verdict.reasons
    assert reason.startswith("stages do not add up: remainder +8.7")


def with_num_samples(manifest: Manifest, num_samples: int) -> Manifest:
    return replace(manifest, dataset={**manifest.dataset, "num_samples": num_samples})


def test_fewer_samples_than_requested(manifest: Manifest, make_run: MakeRun) -> None:
    (reason,) = summarise(with_num_samples(manifest, 200), make_run(6), QUIET).verdict.reasons
    assert reason == "only 6 of 200 samples were run"


def test_too_few_pairs(manifest: Manifest, make_run: MakeRun) -> None:
    (reason,) = summarise(with_num_samples(manifest, 4), make_run(4), None).verdict.reasons
    assert reason.startswith("4 pairs")
    (reason,) = summarise(manifest, make_run(9, e2e_host_ms=None), None).verdict.reasons
    assert reason.startswith("0 pairs")


def test_repeats_are_pairs_too(manifest: Manifest, make_run: MakeRun) -> None:
    repeats = Noise(sample_id="s0", total_host_ms=(100.0,) * 4, e2e_host_ms=(100.0,) * 4)
    assert summarise(with_num_samples(manifest, 1), make_run(1), Probes(noise=repeats)).verdict.valid


def test_other_tokens_end_to_end(manifest: Manifest, make_run: MakeRun, make_record: MakeRecord) -> None:
    verdict = summarise(manifest, [*make_run(), make_record("other", e2e_same_tokens=False)], QUIET).verdict
    (reason,) = verdict.reasons
    assert "other tokens" in reason


def test_noise_warns(manifest: Manifest, make_run: MakeRun) -> None:
    loud = Noise(sample_id="s0", total_host_ms=(100.0, 150.0, 90.0), e2e_host_ms=(100.0, 150.0, 90.0))
    verdict = summarise(manifest, make_run(), Probes(noise=loud)).verdict
    assert verdict.valid
    assert any("noise" in warning for warning in verdict.warnings)


def test_drift_warns(manifest: Manifest, make_record: MakeRecord) -> None:
    records = [make_record(f"s{i}", ms=(8.5, 17.0, 28.5, 21.8, 900.0 + i)) for i in range(100)]
    verdict = summarise(manifest, records, QUIET).verdict
    assert verdict.valid
    assert any(warning.startswith("drift: decode changed by +10.4 %") for warning in verdict.warnings)
    assert not any("encode" in warning for warning in verdict.warnings)


def test_summary_numbers_by_hand(manifest: Manifest, make_run: MakeRun, make_record: MakeRecord) -> None:
    warm = [make_record("s0", warmup=True, ms=(100.0, 100.0, 100.0, 100.0, 600.0))]
    found = summarise(manifest, [*warm, *make_run()], QUIET)
    assert (found.num_ok, found.num_failed, found.num_warmups) == (6, 0, 1)
    assert found.warmup_total_ms == (1000.0,)
    assert found.total is not None
    assert found.total.mean == pytest.approx(1004.0), "no warm-up in it"
    assert found.generate is not None
    assert found.generate.p50 == pytest.approx(950.0)
    assert found.llm_to_vision == pytest.approx(950 / 28.5)
    assert found.ttft is not None
    assert found.ttft.p50 == pytest.approx(75.8)
    assert found.tpot is not None
    assert found.tpot.p50 == pytest.approx(928.2 / 511)
    assert found.samples_per_s == pytest.approx(1 / 1.004)
    assert found.output_tokens_per_s == pytest.approx(512 / 1.004)
    assert found.shares_pct["decode"] == pytest.approx(100 * 928.2 / 1004)
    assert found.clock_overhead_pct == pytest.approx(100 * 5 * 0.1 / 1004)


def test_clock_on_cuda_is_measured_in_pairs(manifest: Manifest, make_run: MakeRun) -> None:
    found = summarise(replace(manifest, model={"device": "cuda:0"}), make_run(staged_host_ms=1014.04), QUIET)
    assert found.clock_overhead_pct == pytest.approx(1.0)


def test_summary_is_json(manifest: Manifest, make_run: MakeRun) -> None:
    plain = summarise(manifest, make_run(), QUIET).to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False))["verdict"]["word"] == "VALID"
