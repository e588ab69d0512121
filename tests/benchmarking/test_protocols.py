"""Each protocol: its timed stages, its claims, and the rejection of the control."""

from __future__ import annotations

import pytest

from unfuse.benchmarking import PROTOCOLS, BenchSettings, bench_model
from unfuse.errors import CutError
from unfuse.records import PROTOCOL_STAGES
from unfuse.report import sample_line
from unfuse.report.claims import claimed_llm, claimed_vision, hooked_spans, unsynchronised_vision
from unfuse.samples.demo import demo_dataset

QUICK = BenchSettings(max_new_tokens=3, num_warmups=1, noise_repeats=5, balance_seconds=0.0)


@pytest.fixture(scope="module")
def runs(demo_model):
    data = demo_dataset(max_samples=2)
    return {name: bench_model(demo_model, data, QUICK, protocol=name) for name in PROTOCOLS}


def test_every_protocol_times_its_stages_on_the_same_samples(runs):
    assert set(runs) == set(PROTOCOL_STAGES) == {"decoupled", "fused", "hooked", "reencode"}
    for name, run in runs.items():
        assert run.manifest.protocol == name
        for record in run.records:
            assert tuple(record.stages) == PROTOCOL_STAGES[name]
            assert 0 < record.total_host_ms <= record.staged_host_ms
        measured = [r for r in run.records if not r.warmup]
        assert [r.sample_id for r in measured] == ["demo:0", "demo:1"]
        assert [r.token_ids for r in measured] == [r.token_ids for r in runs["decoupled"].records if not r.warmup]
        assert all(r.e2e_same_tokens for r in measured)


def test_hooks_see_tower_and_projector_inside_the_fused_call(runs):
    for record in runs["hooked"].records:
        seen = hooked_spans(record)
        assert set(seen) == {"tower", "projector"}
        fused = record.stages["fused_generate"].host_ms
        vision, llm = claimed_vision(record, "hooked"), claimed_llm(record, "hooked")
        assert 0 < vision < fused
        assert vision + llm == pytest.approx(fused)
        assert unsynchronised_vision(record) == vision, "on the CPU there is nothing to wait for"
    assert not any(hooked_spans(record) for record in runs["fused"].records)


def test_reencode_is_marked_invalid_in_every_output(runs, tmp_path):
    run = runs["reencode"]
    verdict = run.summary().verdict
    assert not verdict.valid
    assert "vision modules were called 2 times after Stage 3" in verdict.reasons[0]
    assert run.probes.encoder_calls_after_encode == 2
    run.save(tmp_path / "run")
    assert "**INVALID**" in (tmp_path / "run" / "report.md").read_text()
    assert '"word": "INVALID"' in (tmp_path / "run" / "summary.json").read_text()
    assert all("INVALID" in sample_line(0, record, "reencode") for record in run.records)


def test_decoupled_never_encodes_after_stage_3(runs):
    assert runs["decoupled"].probes.encoder_calls_after_encode == 0


def test_memory_of_every_stage(runs):
    for name, run in runs.items():
        memory = run.summary().memory
        assert tuple(memory) == PROTOCOL_STAGES[name]
        assert all(m.peak_bytes >= m.resident_bytes > 10**6 for m in memory.values())
        assert run.summary().memory_source


def test_lines_have_the_protocols_stages(runs):
    lines = {name: sample_line(0, run.records[-1], name) for name, run in runs.items()}
    assert lines["fused"].count("S") - lines["fused"].count("Sample") == 3
    assert "S4=" not in lines["fused"]
    assert "prefill=" in lines["decoupled"]
    assert "S3 by hooks" in lines["hooked"]


def test_a_tower_that_cannot_be_found_is_an_error(demo_model, monkeypatch):
    def nothing():
        raise CutError("vision tower", found="none", expected="one")

    monkeypatch.setattr(demo_model.adapter, "vision_modules", nothing)
    data = demo_dataset(max_samples=1)
    for protocol in ("hooked", "reencode"):
        with pytest.raises(CutError, match="vision tower"):
            bench_model(demo_model, data, QUICK, protocol=protocol)
    assert bench_model(demo_model, data, QUICK, protocol="fused").summary().num_ok == 1


def test_hooks_that_never_fire_make_a_run_invalid(demo_model, monkeypatch):
    from torch import nn

    monkeypatch.setattr(demo_model.adapter, "vision_modules", lambda: {"tower": nn.Linear(1, 1)})
    run = bench_model(demo_model, demo_dataset(max_samples=1), QUICK, protocol="hooked")
    assert "1 samples on which no hook fired" in run.summary().verdict.reasons[0]


def test_a_model_that_encodes_again_in_stage_4_is_invalid(demo_model, monkeypatch):
    adapter = demo_model.adapter
    sound = adapter.prompt

    def prompt(prepared, features, *, digest):
        adapter.encode(prepared)
        return sound(prepared, features, digest=digest)

    monkeypatch.setattr(adapter, "prompt", prompt)
    run = bench_model(demo_model, demo_dataset(max_samples=1), QUICK)
    assert run.summary().verdict.reasons[0] == "vision modules were called 2 times after Stage 3"
