"""``trace.json``: a run over time, in the Chrome trace format that Perfetto reads.

One process: the run. Threads: its samples on the host, with stages and sub-spans as they were measured; the same on the
device's clock, if there is one; and the passes after the samples that show tokens and memory. Times in the file are
microseconds since ``created`` of ``run.json``, to the nanosecond.

The file is bounded: samples beyond ``MOST_EVENTS`` are left out, from the end, and the file says how many.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from unfuse.records.schema import Manifest, Probes, SampleRecord, StageTime, StepPass

MOST_EVENTS: Final = 120_000
"""About 20 MB; 5,000 samples of 25 events."""
_PROCESS: Final = 1
_SAMPLES, _SAMPLES_DEVICE, _STEPS, _STEPS_DEVICE = 1, 2, 3, 4
_THREADS: Final = {
    _SAMPLES: "samples, host",
    _SAMPLES_DEVICE: "samples, device",
    _STEPS: "steps (after the samples), host",
    _STEPS_DEVICE: "steps (after the samples), device",
}
Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Slice:
    """An interval in whole nanoseconds, so that nested intervals stay nested."""

    start_ns: int
    duration_ns: int

    @property
    def end_ns(self) -> int:
        return self.start_ns + self.duration_ns

    def holds(self, other: _Slice) -> bool:
        return self.start_ns <= other.start_ns and other.end_ns <= self.end_ns


@dataclass(frozen=True, kw_only=True, slots=True)
class _Track:
    """A sample, or a pass after the samples, on a thread of the host and a thread of the device."""

    name: str
    host: int
    device: int
    stages: Mapping[str, StageTime]
    spans: Mapping[str, StageTime]
    about: Mapping[str, Any]
    """Arguments of every event."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the outermost event."""
    stage_facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Further arguments of each stage."""

    def events(self) -> Iterator[Event]:
        """Return the sample, its stages below it, and their sub-spans below those, on each clock."""
        timed = [_slice(time.start_ms, time.host_ms) for time in self.stages.values()]
        slices = [each for each in timed if each is not None]
        if not slices:
            return  # of an older run, or a failed one: there is no beginning to draw it at
        start, end = min(each.start_ns for each in slices), max(each.end_ns for each in slices)
        facts = {key: value for key, value in self.facts.items() if value is not None}
        yield _event(self.name, "sample", self.host, _Slice(start, end - start), {**self.about, **facts})
        for stage, time in self.stages.items():
            yield from self._on_host(stage, time)
            yield from self._on_device(stage, time)

    def _on_host(self, stage: str, time: StageTime) -> Iterator[Event]:
        outer = _slice(time.start_ms, time.host_ms)
        if outer is None:
            return
        facts = {**self.about, "device_ms": time.device_ms, **self.stage_facts.get(stage, {})}
        yield _event(stage, "stage", self.host, outer, facts)
        for span, entry in self._entries(stage):
            if (inner := _slice(entry.start_ms, entry.host_ms)) is not None:
                yield _event(span, "span", self.host, inner, {**self.about, "device_ms": entry.device_ms})

    def _on_device(self, stage: str, time: StageTime) -> Iterator[Event]:
        outer = _slice(time.device_start_ms, time.device_ms)
        if outer is None:
            return
        yield _event(stage, "stage", self.device, outer, self.about)
        for span, entry in self._entries(stage):
            inner = _slice(entry.device_start_ms, entry.device_ms)
            # If a stage uses the device in one sub-span only, marks of the others bound idle time.
            if inner is not None and outer.holds(inner):
                yield _event(span, "span", self.device, inner, self.about)

    def _entries(self, stage: str) -> list[tuple[str, StageTime]]:
        """Return every entry into a sub-span of a stage."""
        return [
            (span, entry)
            for span, total in self.spans.items()
            if span.startswith(f"{stage}.")
            for entry in total.entries or (total,)
        ]


def trace_text(manifest: Manifest, records: Sequence[SampleRecord], probes: Probes | None) -> str:
    """Return the file, an event a line.

    Args:
        manifest: of the run.
        records: all lines, warm-up among them.
        probes: measurements beside the samples.
    """
    probes = probes or Probes()
    steps = [event for each in probes.steps for event in _steps(each, probes)]
    events: list[Event] = []
    count = 0
    for record in records:
        found = [*_sample(record)]
        if len(events) + len(found) + len(steps) > MOST_EVENTS:
            break
        events += found
        count += 1
    events += steps
    about = {
        "run_id": manifest.run_id,
        "created": manifest.created,
        "schema_version": manifest.schema_version,
        "times": "microseconds since created",
        "records": f"{count} of {len(records)}; warm-up repeats are among them, marked",
        "token_steps": f"of {len(probes.steps)} passes after the samples, in no statistic",
        "memory": probes.memory_source or "not counted on this system",
    }
    lines = ",\n".join(json.dumps(event, allow_nan=False) for event in [*_names(manifest, events), *events])
    head = json.dumps(about)
    return f'{{"displayTimeUnit": "ms", "otherData": {head}, "traceEvents": [\n{lines}\n]}}\n'


def _names(manifest: Manifest, events: Sequence[Event]) -> Iterator[Event]:
    title = f"unfuse: {manifest.model.get('name')} ({manifest.protocol})"
    yield {"ph": "M", "name": "process_name", "pid": _PROCESS, "args": {"name": title}}
    used = {event.get("tid") for event in events}
    for thread, name in _THREADS.items():
        if thread in used:
            where = {"pid": _PROCESS, "tid": thread}
            yield {"ph": "M", "name": "thread_name", **where, "args": {"name": name}}
            yield {"ph": "M", "name": "thread_sort_index", **where, "args": {"sort_index": thread}}


def _sample(record: SampleRecord) -> Iterator[Event]:
    about = {"sample_id": record.sample_id, "warmup": record.warmup, "status": record.status}
    facts = {"output_tokens": record.output_tokens, "media": record.media, "error": record.error}
    word = "warm-up" if record.warmup else "sample"
    yield from _Track(
        name=f"{word} {record.sample_id}", host=_SAMPLES, device=_SAMPLES_DEVICE,
        stages=record.stages, spans=record.spans, about=about, facts=facts,
    ).events()  # fmt: skip
    if (whole := _slice(record.e2e_start_ms, record.e2e_host_ms)) is not None:
        yield _event("end to end", "end to end", _SAMPLES, whole, about)


def _steps(each: StepPass, probes: Probes) -> Iterator[Event]:
    about = {"sample_id": each.sample_id}
    extra: dict[str, dict[str, Any]] = {stage: {} for stage in each.stages}
    for stage in each.stages:
        if (memory := probes.memory.get(stage)) is not None:
            extra[stage] |= {"peak_bytes": memory.peak_bytes, "resident_bytes": memory.resident_bytes}
        if probes.energy is not None and (energy := probes.energy.stages.get(stage)) is not None:
            extra[stage] |= {"joules": energy.joules, "resolution_joules": energy.resolution_joules}
    yield from _Track(
        name=f"steps of {each.sample_id}", host=_STEPS, device=_STEPS_DEVICE,
        stages=each.stages, spans=each.spans, about=about, stage_facts=extra,
    ).events()  # fmt: skip
    for number, (before, after) in enumerate(pairwise(each.token_ms), start=2):
        start, end = _ns(before), _ns(after)
        yield _event("token", "token", _STEPS, _Slice(start, end - start), {**about, "token": number})
    counter = f"memory held, {probes.memory_source}"
    for ms, num_bytes in zip(each.memory_ms, each.memory_bytes, strict=True):
        yield {
            "ph": "C",
            "name": counter,
            "pid": _PROCESS,
            "ts": _ns(ms) / 1000,
            "args": {"bytes": num_bytes},
        }


def _slice(start_ms: float | None, duration_ms: float | None) -> _Slice | None:
    if start_ms is None or duration_ms is None:
        return None
    return _Slice(_ns(start_ms), _ns(duration_ms))


def _ns(ms: float) -> int:
    return round(ms * 1e6)


def _event(name: str, category: str, thread: int, when: _Slice, args: Mapping[str, Any]) -> Event:
    return {
        "ph": "X",
        "name": name,
        "cat": category,
        "pid": _PROCESS,
        "tid": thread,
        "ts": when.start_ns / 1000,
        "dur": when.duration_ns / 1000,
        "args": dict(args),
    }
