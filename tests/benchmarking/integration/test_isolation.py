"""Findings of isolation before, between and after the samples, in every output."""

from __future__ import annotations

import pytest

from tests.benchmarking.benching import QUICK, Listener, bench
from unfuse.benchmarking import BenchSettings, RunOptions, bench_model
from unfuse.benchmarking.bench import read_run
from unfuse.errors import VerificationError
from unfuse.measure.nvml import GpuProcess


def test_no_finding_no_message(demo_model, dataset, guard):
    run = bench(demo_model, dataset, guard, strict=True)
    assert run.summary().disturbances == ()
    assert not any("isolated" in text for text in run.summary().verdict.warnings + run.summary().verdict.reasons)
    assert run.manifest.environment["isolation"] == {"findings": (), "unseen": {}}
    assert run.summary().isolation_unseen == {}


def intruder(pid=7):
    return GpuProcess(pid=1000, used_bytes=2**30), GpuProcess(pid=pid, used_bytes=2**31)


def test_strict_refuses_to_start(demo_model, dataset, gpu, guard, tmp_path):
    gpu.running = intruder()
    with pytest.raises(VerificationError, match=r"gpu-processes: 1 others on the GPU: 7 \(python, 2.0 GiB\)") as caught:
        bench(demo_model, dataset, guard, strict=True, output=tmp_path / "r")
    assert caught.value.exit_code == 1
    assert not (tmp_path / "r").exists()


def test_without_strict_a_finding_at_the_start_warns_and_is_recorded(demo_model, dataset, gpu, guard, tmp_path):
    gpu.busy_pct = 80
    warnings = []
    options = RunOptions(guard=guard, output=tmp_path / "r", listener=Listener(warning=warnings.append))
    run = bench_model(demo_model, dataset, BenchSettings(**QUICK), options)
    finding = "gpu-busy: 80 % busy while this process did nothing (limit 10 %)"
    assert warnings == [f"not isolated at the start: {finding}"]
    assert f"not isolated at the start: {finding}" in run.summary().verdict.warnings
    assert read_run(tmp_path / "r").summary().disturbances == run.summary().disturbances
    assert "gpu-busy: 80 %" in (tmp_path / "r" / "report.md").read_text()


@pytest.mark.parametrize("strict", [False, True])
def test_a_finding_between_the_samples(demo_model, dataset, gpu, guard, strict):
    def after_the_first(index, record):
        gpu.slow = ("power cap",) if index == 0 else ()

    run = bench(demo_model, dataset, guard, strict=strict, on_record=after_the_first)
    assert [record.disturbances for record in run.records] == [
        (), ("gpu-throttled: clocks held down at this moment by power cap",),
    ]  # fmt: skip
    finding = "gpu-throttled: clocks held down at this moment by power cap"
    text = f"not isolated: {finding} (1 of 2 runs, first at sample demo:1)"
    verdict = run.summary().verdict
    assert (text in verdict.reasons) is strict
    assert (text in verdict.warnings) is not strict


def test_a_finding_at_the_end(demo_model, dataset, host, guard):
    def at_the_end(index, record):
        host.others = 1.9 if index == 1 else 0.0

    run = bench(demo_model, dataset, guard, strict=True, on_record=at_the_end)
    text = "not isolated after the samples: cpu-busy: others took 95 % of 2 cores (limit 20 %)"
    assert text in run.summary().verdict.reasons
    assert run.probes.isolation.findings[0].rule == "cpu-busy"


def test_a_resumed_run_keeps_what_was_found_when_it_went_on(demo_model, dataset, gpu, guard, tmp_path):
    class KilledError(Exception):
        pass

    def kill(index, record):
        raise KilledError

    with pytest.raises(KilledError):
        bench(demo_model, dataset, guard, output=tmp_path / "r", on_record=kill)
    gpu.busy_pct = 80
    run = bench(demo_model, dataset, guard, output=tmp_path / "r", resume=True)
    first, second = run.records
    assert first.disturbances == ()
    assert second.disturbances == ("gpu-busy: 80 % busy while this process did nothing (limit 10 %)",)
    assert second.stages["load"].start_ms > first.stages["decode"].start_ms + first.stages["decode"].host_ms
    assert (tmp_path / "r" / "trace.json").is_file()
