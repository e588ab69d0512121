"""Profiles: our stages around the operators in them, and a bound on the size."""

from __future__ import annotations

import json

import torch

from unfuse.measure.clock import span
from unfuse.measure.profiler import ProfilerClock, bounded, profiling


def within(outer, inner):
    return outer["ts"] <= inner["ts"] and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"] + 0.01


def test_operators_lie_under_our_stages():
    weights = torch.ones(64, 64)
    with profiling(torch.device("cpu")) as profiles:
        clock = ProfilerClock()
        with clock.stage("encode"), span("tower"):
            weights @ weights
        with clock.stage("decode"):
            weights.softmax(0)
        with span("after"):
            pass
    (profile,) = profiles
    events = [event for event in json.loads(profile.text)["traceEvents"] if event.get("ph") == "X"]
    named = {event["name"]: event for event in events}
    assert {name for name in named if name.startswith("unfuse: ")} == {
        "unfuse: encode", "unfuse: encode.tower", "unfuse: decode",
    }  # fmt: skip
    assert within(named["unfuse: encode"], named["unfuse: encode.tower"])
    assert within(named["unfuse: encode.tower"], named["aten::mm"])
    assert within(named["unfuse: decode"], named["aten::softmax"])
    assert not within(named["unfuse: decode"], named["aten::mm"])
    assert profile.num_left_out == 0
    assert profile.num_kernels == 0, "the CPU launches none"


def test_the_shortest_go_and_our_stages_stay():
    ours = [{"ph": "X", "name": "unfuse: load", "ts": 0, "dur": 0.1}]
    kernels = [{"ph": "X", "cat": "kernel", "name": f"k{i}", "ts": i, "dur": i} for i in range(10)]
    profile = bounded({"schemaVersion": 1, "traceEvents": [*ours, *kernels]}, 6)
    trace = json.loads(profile.text)
    assert [event["name"] for event in trace["traceEvents"]] == ["unfuse: load", "k5", "k6", "k7", "k8", "k9"]
    assert (profile.num_events, profile.num_kernels, profile.num_left_out) == (6, 5, 5)
    assert trace["schemaVersion"] == 1
