"""Check ``timing-additive``: the stages add up to the separately measured end-to-end time, and both clocks agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from unfuse.benchmarking.pairs import Pairs
from unfuse.benchmarking.protocols import DECOUPLED
from unfuse.benchmarking.settings import BenchSettings
from unfuse.benchmarking.setup import BenchSetup
from unfuse.measure.clock import settled_heap
from unfuse.measure.timers import DeviceTimer
from unfuse.records.schema import SampleRecord
from unfuse.records.verification_file import CheckResult
from unfuse.report.statistics import balance
from unfuse.samples import Sample
from unfuse.staged_model import StagedModel
from unfuse.verification.result import judged

PAIRS: Final = 12
CLOCKS_TOLERANCE: Final = 0.05
"""Host and device time of a stage may differ by this share of the longer time ..."""
CLOCKS_TOLERANCE_MS: Final = 0.3
"""... and by this constant: launching a stage's first kernel and seeing its last one end."""
MIN_RUN_MS: Final = 100.0
"""A shorter run on a device is repeated with longer answers ..."""
MIN_TOKENS: Final = 512
"""... of so many tokens at least."""
_DEVICE_STAGES: Final = ("encode", "prefill", "decode")


def timing_additive(
    model: StagedModel,
    sample: Sample,
    timer: DeviceTimer,
    max_new_tokens: int,
    *,
    pairs: int = PAIRS,
) -> CheckResult:
    """Time staged and unstaged runs of one sample in pairs.

    At an edge between two stages the device waits for the host to launch its next work. In a short run this wait alone
    exceeds the tolerance, so longer answers are timed.
    """
    settings = BenchSettings(max_new_tokens=max_new_tokens)
    with settled_heap():
        setup = BenchSetup(model=model, protocol=DECOUPLED, settings=settings, timer=timer)
        measuring = Pairs(setup)
        first = [record for record in measuring.measure(sample) if record.status == "ok" and not record.warmup]
        if model.device.type != "cpu" and first and first[0].total_host_ms < MIN_RUN_MS:
            longer = BenchSettings(output_length=max(MIN_TOKENS, max_new_tokens))
            measuring = Pairs(replace(setup, settings=longer))
            for _ in measuring.measure(sample):
                pass
        records = [record for _ in range(pairs) for record in measuring.measure(sample) if not record.warmup]
    if failed := [record for record in records if record.status == "failed"]:
        return judged("timing-additive", False, expected="timed runs", observed=failed[0].error or "a failed run")
    found = balance([(r.total_host_ms, r.e2e_host_ms) for r in records if r.e2e_host_ms is not None])
    mismatch = clock_mismatch(records)
    return judged(
        "timing-additive",
        found.adds_up and not mismatch,
        expected="sum of stages = end to end; host and device clocks agree where the device is busy",
        observed=f"remainder {found.text} over {len(records)} pairs; " + (mismatch or _clocks_line(records)),
        tolerance=f"interval touches +-1 %; clocks within {CLOCKS_TOLERANCE:.0%} + {CLOCKS_TOLERANCE_MS} ms",
    )


def clock_mismatch(records: Sequence[SampleRecord]) -> str | None:
    """Return the first stage with a disagreement of the clocks in the median record, or None."""
    for stage in _DEVICE_STAGES:
        times = sorted(
            ((t.host_ms, t.device_ms) for r in records if (t := r.stages.get(stage)) and t.device_ms is not None),
            key=lambda pair: pair[0] - pair[1],
        )
        if not times:
            continue
        host, device = times[len(times) // 2]
        if abs(host - device) > CLOCKS_TOLERANCE * max(host, device) + CLOCKS_TOLERANCE_MS:
            return f"clocks disagree on {stage}: host {host:.3f} ms, device {device:.3f} ms"
    return None


def _clocks_line(records: Sequence[SampleRecord]) -> str:
    has_device = any(t.device_ms is not None for r in records for t in r.stages.values())
    return "clocks agree" if has_device else "no device clock on this device"
