"""``trace.json`` and ``profile.json`` as Perfetto reads them, by its own Python package and SQL."""

from __future__ import annotations

import json
import os
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from unfuse.benchmarking import BenchSettings, RunOptions, bench_model
from unfuse.measure.isolation import IsolationGuard, LinuxHost
from unfuse.records import STAGES, RunFolder
from unfuse.samples import Dataset
from unfuse.samples.demo import demo_dataset
from unfuse.testing import FakeGpu

SHELL = Path(__file__).with_name("trace_processor_shell.cjs")
SLICES = """
select s.id, s.ts, s.dur, s.name, s.category, s.depth, p.name as parent, t.name as thread, process.name as process,
       extract_arg(s.arg_set_id, 'args.sample_id') as sample_id, extract_arg(s.arg_set_id, 'args.warmup') as warmup,
       extract_arg(s.arg_set_id, 'args.token') as token
from slice s left join slice p on s.parent_id = p.id
join thread_track tt on s.track_id = tt.id join thread t using (utid) join process using (upid)
order by s.ts, s.depth
"""


def missing() -> str | None:
    """Why Perfetto cannot be queried here."""
    if os.environ.get("PERFETTO_SHELL"):
        return None
    if not os.environ.get("PERFETTO_WASM"):
        return "neither PERFETTO_SHELL (a trace_processor_shell) nor PERFETTO_WASM (of tests/perfetto/fetch) is set"
    return None if shutil.which("node") else "node is not installed"


@pytest.fixture(scope="module")
def open_trace():
    if (reason := missing()) is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    from perfetto.trace_processor import TraceProcessor, TraceProcessorConfig

    shell = os.environ.get("PERFETTO_SHELL") or str(SHELL)
    opened = []

    def open_it(path):
        config = TraceProcessorConfig(bin_path=shell, load_timeout=120)
        opened.append(TraceProcessor(trace=str(path), config=config))
        return opened[-1]

    yield open_it
    for each in opened:
        each.close()


@pytest.fixture(scope="module")
def folder(demo_model, tmp_path_factory):
    """A run with a profile, by an injected guard: how busy this machine is does not matter."""
    run_dir = tmp_path_factory.mktemp("traced") / "run"
    settings = BenchSettings(
        max_new_tokens=6, num_warmups=1, noise_repeats=0, balance_seconds=0, energy_seconds=0, profile=True
    )
    data = demo_dataset(max_samples=3)
    guard = IsolationGuard(host=LinuxHost(), gpu=FakeGpu(), sleep=lambda _: None)
    bench_model(
        demo_model, Dataset(name="three", samples=data.samples), settings, RunOptions(output=run_dir, guard=guard)
    )
    return run_dir


@pytest.fixture(scope="module")
def run(folder):
    opened = RunFolder.open(folder)
    return opened.records(), opened.read_probes()


@pytest.fixture(scope="module")
def trace(open_trace, folder):
    return open_trace(folder / "trace.json")


@pytest.fixture(scope="module")
def slices(trace):
    return list(trace.query(SLICES))


def ns(ms):
    return round(ms * 1e6)


def test_perfetto_reads_all_of_it(trace):
    wrong = [(row.name, row.value) for row in trace.query("select * from stats where severity = 'error' and value > 0")]
    assert not wrong
    (row,) = trace.query("select count(*) as n from slice where dur < 0")
    assert row.n == 0


def test_every_stage_and_span_is_the_one_that_was_measured(slices, run):
    """To the nanosecond, in the order in which they ran."""
    records, _ = run
    host = [row for row in slices if row.thread == "samples, host"]
    assert {row.process for row in host} == {"unfuse: demo (decoupled)"}
    drawn = [(row.sample_id, row.name, row.ts, row.dur) for row in host if row.category in ("stage", "span")]
    recorded = []
    for record in records:
        assert set(record.stages) == set(STAGES)
        for name, time in {**record.stages, **record.spans}.items():
            entries = time.entries or (time,)
            recorded += [(record.sample_id, name, ns(entry.start_ms), ns(entry.host_ms)) for entry in entries]
    assert sorted(drawn) == sorted(recorded)
    assert sum(row.category == "stage" for row in host) == 5 * len(records)


def test_samples_hold_stages_hold_spans(slices):
    for row in slices:
        if row.category == "stage":
            assert row.parent.partition(" ")[0] in ("sample", "warm-up", "steps")
        elif row.category == "span":
            assert row.parent == row.name.partition(".")[0]
        elif row.category == "token":
            assert row.parent == "decode"
        else:
            assert row.parent is None
            assert row.depth == 0


def test_warm_up_and_end_to_end(slices, run):
    records, _ = run
    tops = [row for row in slices if row.depth == 0 and row.thread == "samples, host"]
    assert sum(row.name.startswith("warm-up ") for row in tops) == sum(record.warmup for record in records)
    whole = {row.sample_id: (row.ts, row.dur) for row in tops if row.name == "end to end"}
    measured = [record for record in records if not record.warmup]
    assert whole == {r.sample_id: (ns(r.e2e_start_ms), ns(r.e2e_host_ms)) for r in measured}
    ends = sorted((row.ts, row.ts + row.dur) for row in tops)
    assert all(end <= start for (_, end), (start, _) in pairwise(ends)), "one thing at a time"


def test_each_token_is_a_step_of_decode(slices, run):
    _, probes = run
    tokens = [row for row in slices if row.category == "token"]
    for steps in probes.steps:
        mine = [row for row in tokens if row.sample_id == steps.sample_id]
        assert len(steps.token_ms) == 6
        assert [row.token for row in mine] == [2, 3, 4, 5, 6]
        assert [row.ts for row in mine] == [ns(ms) for ms in steps.token_ms[:-1]]
        assert [row.ts + row.dur for row in mine] == [ns(ms) for ms in steps.token_ms[1:]]
    assert len(tokens) == 5 * len(probes.steps) == 15


def test_the_memory_counter(trace, run):
    _, probes = run
    query = "select c.ts, c.value, t.name from counter c join counter_track t on c.track_id = t.id order by c.ts"
    rows = list(trace.query(query))
    expected = [pair for each in probes.steps for pair in zip(each.memory_ms, each.memory_bytes, strict=True)]
    assert expected
    assert sorted((row.ts, row.value) for row in rows) == sorted(
        (ns(ms), float(num_bytes)) for ms, num_bytes in expected
    )
    assert all(row.value > 100 * 2**20 for row in rows), "a process with torch and a model in it"
    assert all(row.name.startswith("memory held, process") for row in rows)
    first, last = probes.steps[0].stages["load"], probes.steps[-1].stages["decode"]
    assert min(row.ts for row in rows) <= ns(first.start_ms)
    assert max(row.ts for row in rows) >= ns(last.start_ms + last.host_ms)


def test_the_profiles_operators_lie_under_our_stages(open_trace, folder, run):
    profile = open_trace(folder / "profile.json")
    query = """
    select s.name, (select count(*) from descendant_slice(s.id) d where d.name glob 'aten::*') as operators,
           (select count(*) from descendant_slice(s.id) d where d.name glob 'aten::*mm') as products
    from slice s where s.name glob 'unfuse: *' order by s.ts
    """
    below = {row.name: (row.operators, row.products) for row in profile.query(query)}
    stages = [name for name in below if "." not in name]
    assert stages == [f"unfuse: {stage}" for stage in STAGES]
    assert {"unfuse: load.read", "unfuse: preprocess.upload", "unfuse: encode.tower"} <= set(below)
    assert below["unfuse: load"] == (0, 0), "files and numpy"
    for stage in ("encode", "encode.tower", "prefill", "decode"):
        assert below[f"unfuse: {stage}"][1] > 4, stage
    assert below["unfuse: decode"][1] >= 5 * below["unfuse: prefill"][1], "five steps, each through every layer"
    (row,) = profile.query("select count(*) as n from slice")
    events = json.loads((folder / "profile.json").read_text())["traceEvents"]
    assert row.n == sum(event["ph"] in "Xi" for event in events), "names of threads and arrows are no slices"
    assert len(events) == run[1].profile.num_events


def test_a_broken_trace_is_detected(open_trace, folder, tmp_path):
    """The negative control: a stage that is moved out of its sample is no longer below it."""
    trace = json.loads((folder / "trace.json").read_text())
    stage = next(event for event in trace["traceEvents"] if event["name"] == "encode" and event["tid"] == 1)
    stage["ts"] += 1e9
    (tmp_path / "moved.json").write_text(json.dumps(trace))
    rows = list(open_trace(tmp_path / "moved.json").query(SLICES))
    assert any(row.name == "encode" and row.parent is None for row in rows)
