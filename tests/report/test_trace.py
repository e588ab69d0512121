"""``trace.json`` as JSON: its events, left-out events, and the maximum size."""

from __future__ import annotations

import json
from dataclasses import replace

from unfuse.records import STAGES, Energy, Probes, SampleRecord, StageEnergy, StageMemory, StageTime, StepPass
from unfuse.report import trace as trace_module
from unfuse.report import trace_text


def timed(start_ms, *, device=False):
    """Five stages of 10 ms, one after the other."""
    stages = {}
    for index, stage in enumerate(STAGES):
        at = start_ms + 10.0 * index
        stages[stage] = StageTime(
            host_ms=10.0,
            start_ms=at,
            device_ms=9.0 if device and stage != "load" else None,
            device_start_ms=at if device and stage != "load" else None,
        )
    return stages


def record(sample_id="a", start_ms=100.0, **changes):
    spans = {"encode.tower": StageTime(host_ms=2.0, start_ms=start_ms + 21)}
    given = {"stages": timed(start_ms), "spans": spans, "output_tokens": 3, **changes}
    return SampleRecord(sample_id=sample_id, status="ok", **given)


def events_of(manifest, records, probes=None):
    found = json.loads(trace_text(manifest, records, probes))
    return found, [event for event in found["traceEvents"] if event["ph"] != "M"]


def named(events, name):
    return [event for event in events if event["name"] == name]


def test_stages_spans_and_the_whole(manifest):
    found, events = events_of(manifest, [record(e2e_start_ms=200.0, e2e_host_ms=48.0)])
    (sample,) = named(events, "sample a")
    assert (sample["ts"], sample["dur"]) == (100_000, 50_000)
    assert sample["args"] == {"sample_id": "a", "warmup": False, "status": "ok", "output_tokens": 3}
    (encode,) = named(events, "encode")
    assert (encode["ts"], encode["dur"]) == (120_000, 10_000)
    (tower,) = named(events, "encode.tower")
    assert (tower["ts"], tower["dur"]) == (121_000, 2_000)
    (whole,) = named(events, "end to end")
    assert (whole["ts"], whole["dur"]) == (200_000, 48_000)
    assert {event["tid"] for event in events} == {1}, "one clock, one thread"
    assert found["otherData"]["records"] == "1 of 1; warm-up repeats are among them, marked"


def test_the_devices_clock_is_a_thread_of_its_own(manifest):
    spans = {
        "encode.tower": StageTime(host_ms=1.0, start_ms=121.0, device_ms=6.0, device_start_ms=122.0),
        "preprocess.pixels": StageTime(host_ms=8.0, start_ms=110.0, device_ms=8.0, device_start_ms=110.0),
        "preprocess.upload": StageTime(host_ms=1.0, start_ms=119.0, device_ms=0.5, device_start_ms=119.2),
    }
    stages = timed(100.0, device=True)
    stages["preprocess"] = StageTime(host_ms=10.0, start_ms=110.0, device_ms=0.5, device_start_ms=119.2)
    _, events = events_of(manifest, [record(stages=stages, spans=spans)])
    device = [event for event in events if event["tid"] == 2]
    assert [event["name"] for event in device] == [
        "preprocess", "preprocess.upload", "encode", "encode.tower", "prefill", "decode",
    ], "load gives it no work, and between the marks of pixels it idles"  # fmt: skip
    assert (named(device, "encode.tower")[0]["ts"], named(device, "encode.tower")[0]["dur"]) == (122_000, 6_000)


def test_every_entry_of_a_repeated_span(manifest):
    entries = tuple(StageTime(host_ms=1.0, start_ms=121.0 + 2 * i) for i in range(3))
    spans = {"encode.tower": StageTime(host_ms=3.0, start_ms=121.0, entries=entries)}
    _, events = events_of(manifest, [record(spans=spans)])
    assert [event["ts"] for event in named(events, "encode.tower")] == [121_000, 123_000, 125_000]


def test_token_steps_memory_and_energy(manifest):
    steps = StepPass(
        sample_id="a",
        stages=timed(900.0),
        token_ms=(940.5, 943.0, 946.0),
        memory_ms=(900.0, 950.0),
        memory_bytes=(10, 20),
    )
    probes = Probes(
        steps=(steps,),
        memory={"decode": StageMemory(peak_bytes=30, resident_bytes=20)},
        memory_source="a count",
        energy=Energy(stages={"decode": StageEnergy(joules=5.0, resolution_joules=0.1, calls=9, seconds=2.0)}),
    )
    _, events = events_of(manifest, [record()], probes)
    tokens = named(events, "token")
    assert [(e["ts"], e["dur"], e["args"]["token"]) for e in tokens] == [(940_500, 2_500, 2), (943_000, 3_000, 3)]
    counter = named(events, "memory held, a count")
    assert [(e["ts"], e["args"]["bytes"]) for e in counter] == [(900_000, 10), (950_000, 20)]
    (decode,) = [event for event in named(events, "decode") if event["tid"] == 3]
    assert decode["args"] == {
        "sample_id": "a", "device_ms": None, "peak_bytes": 30, "resident_bytes": 20, "joules": 5.0,
        "resolution_joules": 0.1,
    }  # fmt: skip


def test_what_has_no_beginning_is_not_drawn(manifest):
    old = {stage: StageTime(host_ms=1.0) for stage in STAGES}
    failed = SampleRecord(sample_id="b", status="failed", error="broken")
    found, events = events_of(manifest, [record(stages=old, spans={}), failed])
    assert events == []
    assert found["otherData"]["records"].startswith("2 of 2")


def test_samples_beyond_the_bound_are_left_out_and_counted(manifest, monkeypatch):
    monkeypatch.setattr(trace_module, "MOST_EVENTS", 40)
    steps = StepPass(sample_id="a", stages=timed(9000.0), token_ms=(9040.0, 9041.0))
    records = [record(f"s{i}", 100.0 * i) for i in range(20)]
    found, events = events_of(manifest, records, Probes(steps=(steps,)))
    assert len(events) <= 40
    assert found["otherData"]["records"].startswith("4 of 20")
    assert named(events, "token"), "the steps are always there"


def test_the_size_of_a_usual_run(manifest):
    """200 samples with a device, and three passes of 512 tokens: some megabytes."""
    stages = timed(0.0, device=True)
    spans = {
        f"encode.span{i}": StageTime(host_ms=1.0, start_ms=21.0, device_ms=1.0, device_start_ms=21.0) for i in range(7)
    }
    one = record(stages=stages, spans=spans, e2e_start_ms=60.0, e2e_host_ms=40.0)
    steps = StepPass(
        sample_id="a", stages=stages, token_ms=tuple(map(float, range(512))),
        memory_ms=tuple(map(float, range(2000))), memory_bytes=(2**34,) * 2000,
    )  # fmt: skip
    text = trace_text(manifest, [replace(one, sample_id=str(i)) for i in range(200)], Probes(steps=(steps,) * 3))
    assert len(text) < 4e6
