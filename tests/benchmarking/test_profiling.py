"""The profile of one sample."""

from __future__ import annotations

import json

import pytest

from tests.benchmarking.benching import QUICK, bench
from unfuse.benchmarking import PROTOCOLS, BenchSettings
from unfuse.benchmarking.profiling import profile_sample
from unfuse.benchmarking.setup import BenchSetup
from unfuse.errors import RunFolderError
from unfuse.measure.timers import HostTimer
from unfuse.staged_model import StagedModel


def setup_of(model, **changes):
    settings = BenchSettings(**{**QUICK, **changes})
    return BenchSetup(model=model, protocol=PROTOCOLS["decoupled"], settings=settings, timer=HostTimer())


def test_a_profile_has_a_few_tokens_of_one_sample(demo_model, dataset):
    profile, text = profile_sample(setup_of(demo_model, output_length=40), dataset.samples[0])
    assert profile.output_tokens == 8
    assert profile.num_events == len(json.loads(text)["traceEvents"])


def test_a_profile_that_fails_is_a_reason(demo_model, dataset):
    class Fails(StagedModel):
        def encode(self, source):
            raise RuntimeError("no profiler\nhere")

    model = Fails("fails", demo_model.adapter, demo_model.engine)
    profile, text = profile_sample(setup_of(model), dataset.samples[0])
    assert profile.reason == "RuntimeError: no profiler here"
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
