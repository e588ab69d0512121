"""What is measured beside the samples: token steps, energy, isolation, a profile."""

from __future__ import annotations

import json
from functools import partial

import pytest

from unfuse.errors import RunFolderError, VerificationError
from unfuse.measure.isolation import CpuTimes, IsolationGuard
from unfuse.measure.nvml import GpuProcess, Unread
from unfuse.measure.timers import HostTimer
from unfuse.protocols import BenchSettings, bench_model
from unfuse.protocols.bench import PROTOCOLS, read_run
from unfuse.protocols.energy import stage_energy
from unfuse.protocols.profiling import profile_sample
from unfuse.protocols.steps import typical_samples
from unfuse.runs import PROTOCOL_STAGES, STAGES, SampleRecord, StageTime
from unfuse.samples.demo import demo_dataset
from unfuse.staged_model import StagedModel
from unfuse.testing import FakeGpu

QUICK = {"max_new_tokens": 4, "num_warmups": 0, "noise_repeats": 0, "balance_seconds": 0.0, "energy_seconds": 0.0}


class Paced(StagedModel):
    """Each call takes 10 ms of a clock."""

    def __init__(self, model, clock):
        super().__init__("paced", model.adapter, model.engine)
        self.clock = clock


def _paced(name):
    def call(self, *given, **named):
        self.clock.sleep(0.01)
        return getattr(StagedModel, name)(self, *given, **named)

    return call


for _name in ("load", "preprocess", "encode", "prefill", "decode", "fused"):
    setattr(Paced, _name, _paced(_name))


class QuietHost:
    """A machine that nobody else uses, unless ``others`` says so."""

    cores = 2

    def __init__(self):
        self.at_s = self.busy_s = 0.0
        self.others = 0.0

    def load_average(self):
        return 0.1

    def times(self):
        self.at_s += 1.0
        self.busy_s += self.others
        return CpuTimes(at_s=self.at_s, busy_s=self.busy_s, own_s=0.0)

    def own_pids(self):
        return frozenset({1000})

    def process_name(self, pid):
        return "python"


@pytest.fixture
def gpu():
    return FakeGpu()


@pytest.fixture
def host():
    return QuietHost()


@pytest.fixture
def guard(gpu, host):
    return IsolationGuard(host=host, gpu=gpu, sleep=lambda _: None)


@pytest.fixture(scope="module")
def dataset():
    return demo_dataset(max_samples=2)


def bench(model, dataset, guard, *, output=None, protocol="decoupled", resume=False, on_record=None, **changes):
    settings = BenchSettings(**{**QUICK, **changes})
    return bench_model(
        model, dataset, settings, guard=guard, output=output, protocol=protocol, resume=resume, on_record=on_record
    )


@pytest.mark.parametrize("protocol", ["decoupled", "fused"])
def test_steps_of_typical_samples_in_no_statistic(demo_model, dataset, guard, protocol, monkeypatch):
    monkeypatch.setattr("unfuse.protocols.steps._MOST_SECONDS", float("inf"))
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
            assert each.token_ms == (), "inside the model's own generate nobody looks"
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


def test_energy_of_every_stage_in_records_and_report(demo_model, dataset, host, tmp_path, monkeypatch):
    """Constant power: joules are watts by seconds."""
    gpu = FakeGpu(idle_watts=100, period_s=0.002)
    guard = IsolationGuard(host=host, gpu=gpu, sleep=lambda _: None)
    monkeypatch.setattr("unfuse.protocols.probing.stage_energy", partial(stage_energy, clock=gpu.clock))
    run = bench(Paced(demo_model, gpu.clock), dataset, guard, output=tmp_path / "r", energy_seconds=0.1)
    energy = read_run(tmp_path / "r").probes.energy
    assert energy == run.probes.energy
    assert set(energy.stages) == set(STAGES)
    assert not energy.missing
    assert energy.output_tokens == 4
    for stage, found in energy.stages.items():
        assert found.joules == pytest.approx(100 * found.seconds / found.calls, rel=0.15), stage
        assert 0 < found.resolution_joules < found.joules * 0.2, stage
        assert found.calls >= 1
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())["energy"]
    total = sum(found.joules for found in energy.stages.values())
    assert summary["total"]["joules"] == pytest.approx(total)
    assert summary["decoded_token"]["joules"] == pytest.approx(energy.stages["decode"].joules / 3)
    assert summary["output_token"]["joules"] == pytest.approx(total / 4)
    assert abs(summary["total"]["above_idle_joules"]) < 0.15 * total, "it never drew more than idle"
    report = (tmp_path / "r" / "report.md").read_text()
    assert "### Energy of one sample, J (NVML total energy of a fake GPU)" in report
    assert "The counter moves every" in report


@pytest.mark.parametrize("protocol", ["hooked", "reencode"])
def test_energy_of_other_protocols_is_of_their_stages(demo_model, dataset, host, protocol):
    gpu = FakeGpu(idle_watts=100, period_s=0.001)
    settings = BenchSettings(**{**QUICK, "energy_seconds": 0.05})
    model = Paced(demo_model, gpu.clock)
    found = stage_energy(protocol, model, dataset.samples[0], settings, gpu, HostTimer(), gpu.clock)
    assert set(found.stages) == set(PROTOCOL_STAGES[protocol])


def test_energy_that_cannot_be_measured_is_null_with_the_reason(demo_model, dataset, guard, tmp_path):
    guard.gpu = Unread("no NVIDIA GPU is used: the model is on the cpu")
    bench(demo_model, dataset, guard, output=tmp_path / "r", energy_seconds=0.1)
    probes = json.loads((tmp_path / "r" / "probes.json").read_text())
    assert probes["energy"]["reason"] == guard.gpu.reason
    assert probes["energy"]["stages"] == {}
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert summary["energy"]["total"] is summary["energy"]["decoded_token"] is None
    assert f"Energy: not measured ({guard.gpu.reason})." in (tmp_path / "r" / "report.md").read_text()


def test_a_counter_too_slow_for_the_window(demo_model, dataset, gpu):
    """The negative control: nothing is said of a stage rather than something wrong."""
    settings = BenchSettings(**{**QUICK, "energy_seconds": 2.0})
    slow = FakeGpu(period_s=0.5)
    found = stage_energy("decoupled", demo_model, dataset.samples[0], settings, slow, HostTimer(), slow.clock)
    assert found.stages == {}
    assert set(found.missing) == set(STAGES)
    assert "more than 4 x --energy-seconds 2" in found.missing["decode"]
    assert found.idle_watts == pytest.approx(80, rel=0.1)


def test_a_stage_that_fails_leaves_the_others_their_numbers(demo_model, dataset):
    class Fails(Paced):
        calls = 0

        def encode(self, source):
            Fails.calls += 1
            if Fails.calls > 1:
                raise RuntimeError("CUDA error: out of memory")
            return super().encode(source)

    gpu = FakeGpu(idle_watts=100, period_s=0.001)
    settings = BenchSettings(**{**QUICK, "energy_seconds": 0.05})
    model = Fails(demo_model, gpu.clock)
    found = stage_energy("decoupled", model, dataset.samples[0], settings, gpu, HostTimer(), gpu.clock)
    assert found.missing == {"encode": "RuntimeError: CUDA error: out of memory"}
    assert set(found.stages) == {"load", "preprocess", "prefill", "decode"}


def test_nothing_found_nothing_said(demo_model, dataset, guard):
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
    told = []
    settings = BenchSettings(**QUICK)
    run = bench_model(demo_model, dataset, settings, guard=guard, output=tmp_path / "r", on_warning=told.append)
    said = "gpu-busy: 80 % busy while this process did nothing (limit 10 %)"
    assert told == [f"not isolated: {said}"]
    assert f"not isolated at the start: {said}" in run.summary().verdict.warnings
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
    said = "gpu-throttled: clocks held down at this moment by power cap"
    text = f"not isolated: {said} (1 of 2 runs, first at sample demo:1)"
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


def test_a_profile_has_a_few_tokens_of_one_sample(demo_model, dataset):
    settings = BenchSettings(**{**QUICK, "output_length": 40})
    about, text = profile_sample(PROTOCOLS["decoupled"], demo_model, dataset.samples[0], settings)
    assert about.output_tokens == 8
    assert about.num_events == len(json.loads(text)["traceEvents"])


def test_a_profile_that_fails_is_a_reason(demo_model, dataset):
    class Fails(StagedModel):
        def encode(self, source):
            raise RuntimeError("no profiler\nhere")

    model = Fails("fails", demo_model.adapter, demo_model.engine)
    about, text = profile_sample(PROTOCOLS["decoupled"], model, dataset.samples[0], BenchSettings(**QUICK))
    assert about.reason == "RuntimeError: no profiler here"
    assert text is None


def test_a_profile_needs_a_folder(demo_model, dataset, guard):
    run = bench(demo_model, dataset, guard, profile=True)
    assert run.probes.profile.reason == "the run has no folder to keep it in"


def test_a_run_that_was_saved_from_memory_has_its_trace(demo_model, dataset, guard, tmp_path):
    run = bench(demo_model, dataset, guard)
    run.save(tmp_path / "r")
    events = json.loads((tmp_path / "r" / "trace.json").read_text())["traceEvents"]
    assert sum(event["name"] == "token" for event in events) == 2 * 3
    with pytest.raises(RunFolderError):
        run.save(tmp_path / "r")
