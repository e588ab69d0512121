"""Counted work of a sample, and the reasons for none; ``tests/verification/test_work.py`` has the faults."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from unfuse.benchmarking.counted_work import count_prepared, count_work
from unfuse.benchmarking.probing import _counted_work
from unfuse.report.counted_work import work_problems


def test_every_stage_of_a_sound_model_has_its_work(demo_model, demo_sample):
    counted = count_work(demo_model, demo_sample)
    assert list(counted.stages) == ["load", "preprocess", "encode", "prefill", "decode"]
    assert (counted.reason, counted.source, counted.output_tokens) == (None, "config", 8)
    assert counted.features_in_prompt
    assert not work_problems(counted)


@pytest.mark.parametrize("tokens", [1, 2, 40])
def test_the_work_of_decode_follows_the_number_of_tokens(demo_model, demo_sample, tokens):
    prepared = demo_model.preprocess(demo_model.load(demo_sample))
    counted = count_prepared(demo_model, prepared, tokens)
    assert bool(counted.stages["decode"].executed) == (tokens > 1)
    assert not work_problems(counted)


def test_quantised_weights_are_not_counted(demo_model, demo_sample, monkeypatch):
    monkeypatch.setattr(demo_model.adapter.model, "quantization_method", SimpleNamespace(value="awq"), raising=False)
    counted = count_work(demo_model, demo_sample)
    assert (counted.reason, counted.stages) == ("the weights are quantised by awq", {})


def test_a_failure_to_count_loses_no_measurement(demo_model, demo_sample, monkeypatch):
    def fails(*_):
        raise RuntimeError("Profiler is already\nenabled on this thread")

    monkeypatch.setattr("unfuse.benchmarking.counted_work.counting_all_threads", fails)
    counted = _counted_work(demo_model, demo_sample)
    assert counted.reason == "it could not be counted: Profiler is already enabled on this thread"
    assert not work_problems(counted)


def test_a_tower_with_fewer_layers_than_its_config_says_is_found(small_model, small_sample):
    """All its computations agree with each other; only the config knows."""
    (problem,) = work_problems(count_work(small_model, small_sample))
    assert problem.startswith("encode executes too little work")
