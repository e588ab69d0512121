"""Numbers that cannot be true: a sound run has none, and each kind of them makes a run INVALID."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from unfuse.records import STAGES, Manifest, Noise, Probes, RunFolder, SampleRecord, StageTime
from unfuse.records.schema import Ceilings, Energy, StageEnergy, StageMemory, StageWork, StepPass
from unfuse.report import summarise
from unfuse.report.impossible import CEILING_ERROR_PCT, impossible_numbers
from unfuse.report.measured_run import MeasuredRun
from unfuse.report.reading import read_runs

MS = st.floats(0.001, 1e5)


def manifest(count=1):
    return Manifest(
        run_id="r", created="2026-01-23T00:00:00+00:00", command=("unfuse",), protocol="decoupled", config={}, model={},
        dataset={"num_samples": count}, environment={},
    )  # fmt: skip


@st.composite
def sound_records(draw, sample_id="s0"):
    """A record as a clock gives it: times one after the other, parts within their wholes."""
    now, stages, spans = draw(st.floats(0, 1e6)), {}, {}
    begin = now
    for name in STAGES:
        now += draw(st.floats(0, 2))
        host = draw(MS)
        device = draw(st.none() | st.floats(0, 1).map(lambda share, host=host: share * host))
        stages[name] = StageTime(host_ms=host, device_ms=device, start_ms=now)
        spans[f"{name}.part"] = StageTime(host_ms=host * draw(st.floats(0, 1)))
        now += host
    tokens = draw(st.integers(1, 40))
    accepted = draw(st.lists(st.integers(0, 15), max_size=5))
    return SampleRecord(
        sample_id=sample_id, status="ok", stages=stages, spans=spans,
        staged_host_ms=now - begin + draw(st.floats(0, 1)),
        e2e_host_ms=draw(MS), output_tokens=tokens + sum(accepted) + len(accepted), text_tokens=40, media_tokens=30,
        reused_prefix_tokens=draw(st.integers(0, 70)), accepted_by_pass=tuple(accepted), decode_passes=len(accepted),
        accepted_tokens=sum(accepted), draft_tokens=sum(accepted) + draw(st.integers(0, 9)),
        token_ids=tuple(range(tokens + sum(accepted) + len(accepted))),
    )  # fmt: skip


def found(records, probes=None):
    return impossible_numbers(MeasuredRun(manifest=manifest(), records=records, probes=probes or Probes()))


@given(st.lists(sound_records(), min_size=1, max_size=4), st.data())
@examples(40)
def test_a_sound_run_has_no_impossible_number(records, data):
    named = [replace(record, sample_id=f"s{i}") for i, record in enumerate(records)]
    failed = SampleRecord(sample_id="failed", status="failed", error="no file")
    assert found([*named, failed, replace(named[0], warmup=True)]) == ()


def time_of(record, stage, **changes):
    return {"stages": {**record.stages, stage: replace(record.stages[stage], **changes)}}


def span_of(record, name, **changes):
    return {"spans": {**record.spans, name: replace(record.spans[name], **changes)}}


CORRUPTIONS = {
    "encode on the host is no time": lambda r: time_of(r, "encode", host_ms=-1.0),
    "decode on the device is no time": lambda r: time_of(r, "decode", device_ms=-0.5),
    "load.part on the host is no time": lambda r: span_of(r, "load.part", host_ms=-3.0),
    "e2e_host_ms is no time": lambda r: {"e2e_host_ms": -2.0},
    "drafting_ms is no time": lambda r: {"drafting_ms": -1e-3},
    "kept the device busy longer": lambda r: time_of(r, "prefill", device_ms=1.02 * r.stages["prefill"].host_ms + 0.2),
    "longer than its stage": lambda r: span_of(r, "load.part", host_ms=1.02 * r.stages["load"].host_ms + 0.2),
    "longer than the run that holds them": lambda r: {"staged_host_ms": 0.97 * r.total_host_ms - 0.2},
    "decode begins before prefill ends": lambda r: time_of(
        r, "prefill", host_ms=1.1 * r.stages["prefill"].host_ms + 5.0
    ),
    "output_tokens is negative": lambda r: {"output_tokens": -1},
    "reused_prefix_tokens exceed the prompt": lambda r: {"reused_prefix_tokens": 71},
    "accepted_tokens exceed draft_tokens": lambda r: {"draft_tokens": r.accepted_tokens - 1},
    "decode_passes exceed output_tokens": lambda r: {"decode_passes": r.output_tokens + 1},
    "output_tokens is another number": lambda r: {"output_tokens": r.output_tokens + 1},
    "accepted_tokens is another number": lambda r: {"accepted_by_pass": (*r.accepted_by_pass, 1)},
}


@pytest.mark.parametrize("kind", CORRUPTIONS)
@given(sound_records(), sound_records())
@examples(5)
def test_each_corruption_is_found_and_its_sample_named(kind, record, other):
    bad = replace(record, **CORRUPTIONS[kind](record))
    sentences = found([replace(other, sample_id="other"), bad])
    (sentence,) = [sentence for sentence in sentences if kind in sentence]
    assert sentence.startswith("impossible: ")
    assert "s0" in sentence
    assert "other (" not in sentence


@given(sound_records())
@examples(5)
def test_lines_that_are_there_twice(record):
    assert "1 samples have more than one line: s0" in found([record, record])[0]
    assert "1 samples have more than one line: s0" in found([record, replace(record, e2e_host_ms=1.0)])[0]
    warm = replace(record, warmup=True)
    assert "1 warm-up lines repeat another one" in found([record, warm, warm])[0]
    assert found([record, warm, replace(warm, staged_host_ms=2 * warm.staged_host_ms)]) == ()


def roofed(reached_pct, error_pct=None, *, gigabytes=100.0, output_tokens=None):
    """A stage that takes 100 ms, and its share of a roof."""
    record = SampleRecord(
        sample_id="s0", status="ok", stages={"decode": StageTime(host_ms=100.0)}, output_tokens=output_tokens
    )
    work = StageWork(flops=1, least_bytes=int(reached_pct * gigabytes * 1e7))
    ceilings = Ceilings(bytes_per_s=gigabytes * 1e10, flops_per_s=1e9, error_pct=error_pct)
    return [record], Probes(work={"decode": work}, work_sample_id="s0", ceilings=ceilings)


@pytest.mark.parametrize(
    ("reached", "error", "wrong"),
    [(99, None, False), (CEILING_ERROR_PCT + 99, None, False), (CEILING_ERROR_PCT + 101, None, True),
     (CEILING_ERROR_PCT + 101, 0.1, True), (140, 45.0, False), (150, 45.0, True)],
)  # fmt: skip
def test_a_roof_is_exceeded_by_no_more_than_its_own_error(reached, error, wrong):
    sentences = found(*roofed(reached, error))
    assert bool(sentences) is wrong
    if wrong:
        assert f"decode reached {reached:.0f} % of the roof (memory)" in sentences[0]


def test_a_pass_over_few_bytes_may_read_a_cache():
    """13 GB of weights a pass exceed every cache; those of a small model fit into one."""
    assert found(*roofed(200, gigabytes=10.0, output_tokens=11))
    assert not found(*roofed(200, gigabytes=0.1, output_tokens=11))


def energy(joules, calls=10, seconds=5.0):
    used = StageEnergy(joules=joules, resolution_joules=0.1, calls=calls, seconds=seconds)
    return Probes(energy=Energy(stages={"decode": used}, idle_watts=100.0))


@pytest.mark.parametrize(
    ("probes", "text"),
    [
        (Probes(noise=Noise(sample_id="s0", total_host_ms=(1.0, -1.0), e2e_host_ms=(1.0, 1.0))), "took no time"),
        (Probes(steps=(StepPass(sample_id="s0", stages={}, token_ms=(1.0, 3.0, 2.0)),)), "arrive before"),
        (Probes(memory={"encode": StageMemory(peak_bytes=10, resident_bytes=11)}), "at a peak of 10"),
        (energy(-1.0), "decode took -1 J"),
        (energy(5.0, calls=0), "in 0 calls"),
        (energy(10.0), "the idle device takes 50 J"),
    ],
)
def test_probes(probes, text):
    (sentence,) = found([], probes)
    assert text in sentence


def test_sound_probes():
    assert found([], energy(45.0)) == ()
    assert found([], Probes(steps=(StepPass(sample_id="s0", stages={}, token_ms=(1.0, 1.0, 2.0)),))) == ()


def test_an_edited_run_is_invalid_wherever_it_is_read(tmp_path, make_run):
    """A line of a sound run is written a second time, and another one gets a busier device than time has."""
    records = make_run(6)
    with RunFolder.create(tmp_path / "run", manifest(6)) as folder:
        for record in records:
            folder.append(record)
    verdict = summarise(manifest(6), records, None).verdict
    assert not any("impossible" in reason for reason in verdict.reasons)
    path = tmp_path / "run" / "samples.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[2]]) + "\n")
    (run,) = read_runs([tmp_path / "run"])
    assert run.part.summary.verdict.word == "INVALID"
    assert any("impossible: 1 samples have more than one line: s2" in r for r in run.part.summary.verdict.reasons)
    assert json.loads(lines[2])["sample_id"] == "s2"
