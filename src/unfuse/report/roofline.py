"""Distance of each stage from the limits of the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from unfuse.records.schema import Probes, SampleRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """One stage of one sample under the roofline."""

    flops: int
    least_bytes: int
    floor_ms: float
    """The larger of the two times: bytes at the measured bandwidth, products at the measured rate."""
    bound: Literal["memory", "arithmetic"]
    """Which of the two times is larger."""
    host_ms: float
    device_ms: float | None
    reached_pct: float
    """The floor over the time measured: the device's where there is one, else the host's."""


def roofline(probes: Probes, records: Sequence[SampleRecord]) -> dict[str, Position]:
    """Return the position of each stage, for the sample with counted work; empty if no work was counted."""
    record = next((r for r in records if r.sample_id == probes.work_sample_id and not r.warmup), None)
    ceilings = probes.ceilings
    if record is None or ceilings is None:
        return {}
    found = {}
    for stage, work in probes.work.items():
        time = record.stages.get(stage)
        moved, multiplied = 1000 * work.least_bytes / ceilings.bytes_per_s, 1000 * work.flops / ceilings.flops_per_s
        floor = max(moved, multiplied)
        taken = None if time is None else time.device_ms or time.host_ms
        if time is None or not taken or not floor:
            continue
        found[stage] = Position(
            flops=work.flops,
            least_bytes=work.least_bytes,
            floor_ms=floor,
            bound="memory" if moved >= multiplied else "arithmetic",
            host_ms=time.host_ms,
            device_ms=time.device_ms,
            reached_pct=100 * floor / taken,
        )
    return found
