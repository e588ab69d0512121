"""Times that each protocol would claim for Stage 3 and Stage 4 of a sample.

``decoupled`` measures them. ``hooked`` takes the spans of its hooks for Stage 3 and the rest of the fused call for
Stage 4. ``reencode`` times a Stage 3 without use of its features, and a Stage 4 that encodes again. ``fused`` claims
neither.
"""

from __future__ import annotations

from unfuse.records.schema import FUSED_STAGE, SampleRecord, StageTime

HOOKS = f"{FUSED_STAGE}."
"""Prefix of the names of hooked spans."""


def claimed_vision(record: SampleRecord, protocol: str) -> float | None:
    """Return host ms of Stage 3 as the protocol would report it; hooks by the device's clock if there is one."""
    if protocol == "hooked":
        seen = hooked_spans(record)
        return sum(_true_ms(time) for time in seen.values()) if seen else None
    encode = record.stages.get("encode")
    return None if encode is None else encode.host_ms


def claimed_llm(record: SampleRecord, protocol: str) -> float | None:
    """Return host ms of Stage 4 as the protocol would report it."""
    if protocol == "decoupled":
        return record.stages["prefill"].host_ms + record.stages["decode"].host_ms
    if protocol == "fused":
        return None
    fused = record.stages[FUSED_STAGE].host_ms
    if protocol == "hooked":
        vision = claimed_vision(record, protocol)
        return None if vision is None else fused - vision
    return fused


def hooked_spans(record: SampleRecord) -> dict[str, StageTime]:
    """Return the times of the hooks inside the fused call, by module."""
    return {name.removeprefix(HOOKS): time for name, time in record.spans.items() if name.startswith(HOOKS)}


def unsynchronised_vision(record: SampleRecord) -> float | None:
    """Return the time, in ms, of hooks that read the host clock without synchronising."""
    seen = hooked_spans(record)
    return sum(time.host_ms for time in seen.values()) if seen else None


def _true_ms(time: StageTime) -> float:
    return time.host_ms if time.device_ms is None else time.device_ms
