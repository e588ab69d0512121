"""Numbers of a run that cannot be true, whatever was measured: a fault of a clock, a counter, or an edited file.

Every count has a total, every part a whole, and every time a sign. A run with such a number is INVALID.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Final

from unfuse.records.schema import SampleRecord, StageTime
from unfuse.report.measured_run import MeasuredRun
from unfuse.report.roofline import roofline
from unfuse.report.text import some

CEILING_ERROR_PCT: Final = 10.0
"""Error of a ceiling in % at least, and of one whose own error was not recorded."""
_CACHED_BYTES: Final = 2**28
"""A pass over fewer bytes may read them from a cache, which is faster than the measured memory: it has no such roof."""
_SLACK_MS: Final = 0.1
"""Two clocks, and the two edges of a span, may differ by this time ..."""
_SLACK: Final = 0.01
"""... and by this share of the longer time."""
_IDLE_SHARE: Final = 0.5
"""A stage cannot take less power than this share of the idle device: idle power varies too."""


def impossible_numbers(run: MeasuredRun) -> tuple[str, ...]:
    """Return a sentence for each kind of impossible number, with the samples that have it."""
    faults: dict[str, list[str]] = {}
    for record in run.records:
        for fault in dict.fromkeys(_of_record(record)):
            kind, _, numbers = fault.partition(" | ")
            faults.setdefault(kind, []).append(f"{record.sample_id} ({numbers})" if numbers else record.sample_id)
    sentences = [f"impossible: {kind}: {some(samples)}" for kind, samples in faults.items()]
    return (*sentences, *(f"impossible: {fault}" for fault in (*_lines(run), *_probes(run))))


def _lines(run: MeasuredRun) -> Iterator[str]:
    """Yield lines that are there twice."""
    twice = [sample for sample, count in Counter(record.sample_id for record in run.samples).items() if count > 1]
    if twice:
        yield f"{len(twice)} samples have more than one line: {some(twice)}"
    warm = [record for record in run.records if record.warmup and record.stages]
    if copies := [record.sample_id for index, record in enumerate(warm) if record in warm[:index]]:
        yield f"{len(copies)} warm-up lines repeat another one in every number: {some(copies)}"


def _of_record(record: SampleRecord) -> Iterator[str]:
    """Yield the faults of one line: a kind, and after a bar its numbers."""
    yield from _times(record)
    yield from _parts(record)
    yield from _counts(record)


def _times(record: SampleRecord) -> Iterator[str]:
    named: dict[str, float | None] = {
        "staged_host_ms": record.staged_host_ms,
        "e2e_host_ms": record.e2e_host_ms,
        "drafting_ms": record.drafting_ms,
    }
    for name, time in _all_times(record).items():
        named |= {f"{name} on the host": time.host_ms, f"{name} on the device": time.device_ms}
    for name, ms in named.items():
        if ms is not None and not (math.isfinite(ms) and ms >= 0):
            yield f"{name} is no time | {ms:g} ms"


def _all_times(record: SampleRecord) -> dict[str, StageTime]:
    return {**record.stages, **record.spans}


def _parts(record: SampleRecord) -> Iterator[str]:
    """Yield parts that are longer than their whole."""
    for name, time in record.stages.items():
        # Both clocks see the work between the same two edges.
        if time.device_ms is not None and _longer(time.device_ms, time.host_ms):
            yield f"{name} kept the device busy longer than it took | {time.device_ms:.4g} of {time.host_ms:.4g} ms"
    for name, span in record.spans.items():
        stage = record.stages.get(name.partition(".")[0])
        if stage is not None and _longer(span.host_ms, stage.host_ms):
            yield f"{name} is longer than its stage | {span.host_ms:.4g} of {stage.host_ms:.4g} ms"
    whole = record.staged_host_ms
    if whole is not None and _longer(record.total_host_ms, whole):
        yield f"the stages are longer than the run that holds them | {record.total_host_ms:.4g} of {whole:.4g} ms"
    yield from _overlaps(record.stages)


def _overlaps(stages: Mapping[str, StageTime]) -> Iterator[str]:
    """Yield stages that begin before the stage before them ends."""
    started = sorted(
        ((time.start_ms, time.host_ms, name) for name, time in stages.items() if time.start_ms is not None)
    )
    for (start, taken, name), (following, _, other) in pairwise(started):
        if _longer(taken, following - start):
            yield f"{other} begins before {name} ends | {taken:.4g} ms in {following - start:.4g} ms"


def _longer(part: float, whole: float) -> bool:
    return part > whole + _SLACK_MS + _SLACK * abs(whole)


def _counts(record: SampleRecord) -> Iterator[str]:
    """Yield negative counts, and counts over their totals."""
    for name in (
        "num_events", "num_frames", "text_tokens", "media_tokens", "output_tokens", "reused_prefix_tokens",
        "draft_tokens", "accepted_tokens", "decode_passes",
    ):  # fmt: skip
        count = getattr(record, name)
        if count is not None and count < 0:
            yield f"{name} is negative | {count}"
    prompt = None if record.text_tokens is None else record.text_tokens + (record.media_tokens or 0)
    passes = record.accepted_by_pass
    for part, whole, over, whole_count in (
        ("reused_prefix_tokens", "the prompt", record.reused_prefix_tokens, prompt),
        ("accepted_tokens", "draft_tokens", record.accepted_tokens, record.draft_tokens),
        ("accepted_tokens", "output_tokens", record.accepted_tokens, record.output_tokens),
        ("decode_passes", "output_tokens", record.decode_passes, record.output_tokens),
    ):
        if over is not None and whole_count is not None and over > whole_count:
            yield f"{part} exceed {whole} | {over} of {whole_count}"
    for count, listed, name in (
        (record.output_tokens, record.token_ids, "output_tokens"),
        (record.decode_passes, passes, "decode_passes"),
    ):
        if count is not None and listed is not None and count != len(listed):
            yield f"{name} is another number than the line lists | {count} and {len(listed)}"
    if passes is not None and record.accepted_tokens is not None and sum(passes) != record.accepted_tokens:
        yield f"accepted_tokens is another number than its passes have | {record.accepted_tokens} and {sum(passes)}"


def _probes(run: MeasuredRun) -> Iterator[str]:
    yield from _over_the_roof(run)
    yield from _repeats(run)
    yield from _memory_and_energy(run)


def _over_the_roof(run: MeasuredRun) -> Iterator[str]:
    ceilings = run.probes.ceilings
    error = CEILING_ERROR_PCT if ceilings is None else max(CEILING_ERROR_PCT, ceilings.error_pct or 0.0)
    decoded = next((r for r in run.ok if r.sample_id == run.probes.work_sample_id), None)
    for stage, at in roofline(run.probes, run.ok).items():
        passes = 1 if decoded is None or stage != "decode" else _decode_passes(decoded)
        if at.bound == "memory" and at.least_bytes < _CACHED_BYTES * passes:
            continue
        if at.reached_pct > 100 + error:
            yield (
                f"{stage} reached {at.reached_pct:.0f} % of the roof ({at.bound}); "
                f"the ceiling is known to {error:.0f} %"
            )


def _decode_passes(record: SampleRecord) -> int:
    passes = (record.output_tokens or 0) - 1 if record.decode_passes is None else record.decode_passes
    return max(passes, 1)


def _repeats(run: MeasuredRun) -> Iterator[str]:
    noise = run.probes.noise
    times = () if noise is None else (
        *noise.total_host_ms, *noise.e2e_host_ms, *noise.short_total_host_ms, *noise.short_e2e_host_ms
    )  # fmt: skip
    if bad := [ms for ms in times if not (math.isfinite(ms) and ms >= 0)]:
        yield f"{len(bad)} repeats took no time, such as {bad[0]:g} ms"
    for each in run.probes.steps:
        if any(later < earlier for earlier, later in pairwise(each.token_ms)):
            yield f"tokens of sample {each.sample_id} arrive before the tokens before them"


def _memory_and_energy(run: MeasuredRun) -> Iterator[str]:
    for stage, memory in run.probes.memory.items():
        if not 0 <= memory.resident_bytes <= memory.peak_bytes:
            yield f"{stage} ends with {memory.resident_bytes:,} bytes at a peak of {memory.peak_bytes:,}"
    energy = run.probes.energy
    if energy is None:
        return
    for stage, used in energy.stages.items():
        if used.joules < 0 or used.seconds < 0 or used.calls < 1:
            yield f"{stage} took {used.joules:g} J in {used.calls} calls of {used.seconds:g} s"
            continue
        idle = (energy.idle_watts or 0.0) * used.seconds / used.calls
        if used.joules + used.resolution_joules < _IDLE_SHARE * idle:
            yield f"{stage} took {used.joules:.3g} J a call, and the idle device takes {idle:.3g} J in that time"
