"""Token steps of typical samples, in no statistic."""

from __future__ import annotations

import pytest

from tests.benchmarking.benching import bench
from unfuse.benchmarking.steps import typical_samples
from unfuse.records import PROTOCOL_STAGES, SampleRecord, StageTime


@pytest.mark.parametrize("protocol", ["decoupled", "fused"])
def test_steps_of_typical_samples_in_no_statistic(demo_model, dataset, guard, protocol, monkeypatch):
    monkeypatch.setattr("unfuse.benchmarking.steps._MOST_SECONDS", float("inf"))
    run = bench(demo_model, dataset, guard, protocol=protocol)
    steps = run.probes.steps
    assert {each.sample_id for each in steps} == {"demo:0", "demo:1"}
    last = max(record.e2e_start_ms + record.e2e_host_ms for record in run.records)
    for each in steps:
        assert set(each.stages) == set(PROTOCOL_STAGES[protocol])
        assert each.stages["load"].start_ms > last, "after all samples"
        assert list(each.memory_ms) == sorted(each.memory_ms)
        assert len(each.memory_ms) == len(each.memory_bytes)
        if protocol == "decoupled":
            decode = each.stages["decode"]
            assert len(each.token_ms) == 4
            assert decode.start_ms <= each.token_ms[0] < each.token_ms[-1] <= decode.start_ms + decode.host_ms
            assert len(each.memory_ms) >= 2 * 5, "at every edge at least"
        else:
            assert each.token_ms == (), "the model's own generate yields no tokens one by one"
    assert run.summary().total.count == 2


def test_typical_samples():
    def record(sample_id, ms, **changes):
        stages = {"load": StageTime(host_ms=ms)}
        return SampleRecord(**{"sample_id": sample_id, "status": "ok", "stages": stages, **changes})

    records = [record(str(ms), float(ms)) for ms in (5, 1, 3, 2, 4)]
    records += [record("cold", 99.0, warmup=True), record("bad", 0.0, status="failed")]
    assert typical_samples(records) == ["3", "1", "5"]
    assert typical_samples(records[:1]) == ["5"]
    assert typical_samples(records[-2:]) == []
