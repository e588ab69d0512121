"""Energy of each stage, or why there is none."""

from __future__ import annotations

import json
from functools import partial

import pytest

from tests.benchmarking.benching import QUICK, bench
from unfuse.benchmarking import PROTOCOLS, BenchSettings
from unfuse.benchmarking.bench import read_run
from unfuse.benchmarking.energy import stage_energy
from unfuse.benchmarking.setup import BenchSetup
from unfuse.measure.isolation import IsolationGuard
from unfuse.measure.timers import HostTimer
from unfuse.records import PROTOCOL_STAGES, STAGES
from unfuse.staged_model import StagedModel
from unfuse.testing import FakeGpu
from unfuse.unavailable import Unavailable


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


def setup_of(model, settings, protocol="decoupled"):
    return BenchSetup(model=model, protocol=PROTOCOLS[protocol], settings=settings, timer=HostTimer())


def test_energy_of_every_stage_in_records_and_report(demo_model, dataset, host, tmp_path, monkeypatch):
    """Constant power: joules are watts by seconds."""
    gpu = FakeGpu(idle_watts=100, period_s=0.002)
    guard = IsolationGuard(host=host, gpu=gpu, sleep=lambda _: None)
    monkeypatch.setattr("unfuse.benchmarking.probing.stage_energy", partial(stage_energy, clock=gpu.clock))
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
    found = stage_energy(setup_of(model, settings, protocol), dataset.samples[0], gpu, gpu.clock)
    assert set(found.stages) == set(PROTOCOL_STAGES[protocol])


def test_energy_that_cannot_be_measured_is_null_with_the_reason(demo_model, dataset, guard, tmp_path):
    guard.gpu = Unavailable("no NVIDIA GPU is used: the model is on the cpu")
    bench(demo_model, dataset, guard, output=tmp_path / "r", energy_seconds=0.1)
    probes = json.loads((tmp_path / "r" / "probes.json").read_text())
    assert probes["energy"]["reason"] == guard.gpu.reason
    assert probes["energy"]["stages"] == {}
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert summary["energy"]["total"] is summary["energy"]["decoded_token"] is None
    assert f"Energy: not measured ({guard.gpu.reason})." in (tmp_path / "r" / "report.md").read_text()


def test_a_counter_too_slow_for_the_window(demo_model, dataset, gpu):
    """The negative control: a stage has no value rather than a wrong one."""
    settings = BenchSettings(**{**QUICK, "energy_seconds": 2.0})
    slow = FakeGpu(period_s=0.5)
    found = stage_energy(setup_of(demo_model, settings), dataset.samples[0], slow, slow.clock)
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
    found = stage_energy(setup_of(model, settings), dataset.samples[0], gpu, gpu.clock)
    assert found.missing == {"encode": "RuntimeError: CUDA error: out of memory"}
    assert set(found.stages) == {"load", "preprocess", "prefill", "decode"}
