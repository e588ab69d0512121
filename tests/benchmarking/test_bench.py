"""Benchmarks through the public calls: warm-up, failures, reuse, and the memory in use afterwards."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from unfuse.benchmarking import PROTOCOLS, BenchSettings, RunOptions, bench_model, pairs
from unfuse.benchmarking.pairs import Pairs
from unfuse.benchmarking.setup import BenchSetup
from unfuse.errors import RunFolderError
from unfuse.measure import warmup
from unfuse.measure.timers import HostTimer
from unfuse.records.schema import StageTime
from unfuse.samples import Dataset
from unfuse.samples.demo import demo_dataset
from unfuse.staged_model import StagedModel

QUICK = {"max_new_tokens": 3, "num_warmups": 1, "noise_repeats": 1, "balance_seconds": 0.0}


@pytest.fixture(scope="module")
def dataset():
    return demo_dataset(max_samples=3)


@pytest.fixture(scope="module")
def finished(demo_model, dataset):
    return bench_model(demo_model, dataset, BenchSettings(**QUICK))


def test_every_sample_once_and_warm_up_separately(finished):
    measured = [r for r in finished.records if not r.warmup]
    warm = [r for r in finished.records if r.warmup]
    assert [r.sample_id for r in measured] == ["demo:0", "demo:1", "demo:2"]
    assert warm
    assert {r.sample_id for r in warm} == {"demo:0"}, "one input shape, warmed once"
    assert all(r.e2e_host_ms is None for r in warm)
    assert finished.summary().num_warmups == len(warm)
    assert finished.summary().total.count == 3


def test_times_are_inside_the_staged_run(finished):
    for record in finished.records:
        assert set(record.stages) == {"load", "preprocess", "encode", "prefill", "decode"}
        assert 0 < record.total_host_ms <= record.staged_host_ms


def test_new_input_shapes_are_warmed_again(demo_model, dataset):
    longer = replace(dataset.samples[1], question="What moves, and where does it move to, and how fast?")
    mixed = Dataset(name="mixed", samples=(dataset.samples[0], longer))
    run = bench_model(demo_model, mixed, BenchSettings(**QUICK))
    assert {r.sample_id for r in run.records if r.warmup} == {"demo:0", "demo:1"}


def test_a_shape_is_repeated_until_its_time_is_steady(demo_model, dataset, monkeypatch):
    """With the rule itself (the other tests replace it), and times that settle at the fourth repeat."""
    settling = iter([90.0, 60.0, 30.0, 10.0, 10.0, *[10.0] * 100])
    staged = Pairs._staged

    def timed(pairs_, sample):
        record = staged(pairs_, sample)
        return replace(record, stages={"load": StageTime(host_ms=next(settling))})

    monkeypatch.setattr(pairs, "is_steady", warmup.is_steady)
    monkeypatch.setattr(Pairs, "_staged", timed)
    settings = BenchSettings(**QUICK)
    setup = BenchSetup(model=demo_model, protocol=PROTOCOLS["decoupled"], settings=settings, timer=HostTimer())
    measuring = Pairs(setup)
    first = [record.total_host_ms for record in measuring.measure(dataset.samples[0]) if record.warmup]
    assert first == [90.0, 60.0, 30.0, 10.0, 10.0]
    assert not [record for record in measuring.measure(dataset.samples[0]) if record.warmup], "it is warm"


def test_no_prefix_is_reused_by_default(demo_model, dataset):
    run = bench_model(demo_model, dataset, BenchSettings(reuse=True, **QUICK))
    assert sum(r.reused_prefix_tokens for r in run.records) > 0


def test_a_failure_is_a_record(demo_model, dataset):
    class Fails(StagedModel):
        def encode(self, source):
            if source.media_sha256 == bad:
                raise RuntimeError("CUDA error: out of\nmemory")
            return super().encode(source)

    bad = demo_model.load(dataset.samples[1]).media_sha256
    model = Fails("fails", demo_model.adapter, demo_model.engine)
    run = bench_model(model, dataset, BenchSettings(**QUICK))
    assert [r.status for r in run.records if not r.warmup] == ["ok", "failed", "ok"]
    assert run.summary().failures[0].error == "RuntimeError: CUDA error: out of memory"
    assert not run.summary().verdict.valid
    assert "1 of 3 samples failed: demo:1" in run.summary().verdict.reasons


def test_a_bug_of_ours_is_not_swallowed(demo_model, dataset, tmp_path):
    class Buggy(StagedModel):
        def encode(self, source):
            raise AssertionError("our own")

    model = Buggy("buggy", demo_model.adapter, demo_model.engine)
    with pytest.raises(AssertionError, match="our own"):
        bench_model(model, dataset, BenchSettings(**QUICK), RunOptions(output=tmp_path / "r"))
    assert not (tmp_path / "r").exists(), "nothing was measured, nothing is left"


def test_different_tokens_make_it_invalid(demo_model, dataset):
    class Wavers(StagedModel):
        turn = 0

        def decode(self, *given):
            Wavers.turn += 1
            answer = super().decode(*given)
            return replace(answer, token_ids=(*answer.token_ids[:-1], Wavers.turn))

    run = bench_model(Wavers("wavers", demo_model.adapter, demo_model.engine), dataset, BenchSettings(**QUICK))
    assert any("wrote other tokens" in reason for reason in run.summary().verdict.reasons)


def test_saved_from_memory(finished, tmp_path):
    finished.save(tmp_path / "first")
    lines = (tmp_path / "first" / "samples.jsonl").read_text().splitlines()
    assert len(lines) == len(finished.records)
    assert json.loads((tmp_path / "first" / "summary.json").read_text())["num_ok"] == 3
    with pytest.raises(RunFolderError):
        finished.save(tmp_path / "first")
