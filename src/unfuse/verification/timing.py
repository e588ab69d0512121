"""Check ``timing-additive``: the stages add up to the separately measured end-to-end time, and both clocks agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from unfuse.benchmarking.pairs import Pairs
from unfuse.benchmarking.protocols import DECOUPLED
from unfuse.benchmarking.settings import BenchSettings
from unfuse.benchmarking.setup import BenchSetup
from unfuse.measure import host_time
from unfuse.measure.clock import settled_heap
from unfuse.measure.timers import DeviceTimer
from unfuse.records.schema import SampleRecord
from unfuse.records.verification_file import CheckResult
from unfuse.report.device_clock import EXACT_MS, MIN_SPREAD_MS, copied_clock
from unfuse.report.statistics import BALANCE_PCT, balance
from unfuse.samples import Sample
from unfuse.staged_model import StagedModel
from unfuse.verification.repeated import NUM_SERIES, Reading, decide
from unfuse.verification.result import TimedOutcome, judged, timed

PAIRS: Final = 12
RESOLVED_PCT: Final = 5.0
"""Width of the remainder's interval that still answers the check."""
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
    records: list[SampleRecord] = []
    measured: list[str] = []
    with settled_heap():
        setup = BenchSetup(model=model, protocol=DECOUPLED, settings=settings, timer=timer)
        measuring = Pairs(setup)
        first = list(measuring.measure(sample))
        if failed := _failed(first):
            return failed
        if model.device.type != "cpu" and first[-1].total_host_ms < MIN_RUN_MS:
            longer = BenchSettings(output_length=max(MIN_TOKENS, max_new_tokens))
            measuring = Pairs(replace(setup, settings=longer))
            for _ in measuring.measure(sample):
                pass

        def series() -> Reading:
            new = [record for _ in range(pairs) for record in measuring.measure(sample) if not record.warmup]
            records.extend(new)
            found = balance([(r.total_host_ms, r.e2e_host_ms) for r in new if r.e2e_host_ms is not None])
            measured.append(found.text)
            return Reading(
                low=found.ci_low_pct, high=found.ci_high_pct, least=-BALANCE_PCT, most=BALANCE_PCT, widest=RESOLVED_PCT
            )

        outcome = decide(series)
    if failed := _failed(records):
        return failed
    clocks, text = _clocks(records)
    return timed(
        "timing-additive",
        _worse(outcome, clocks),
        expected="sum of stages = end to end; host and device clocks agree where the device is busy",
        observed=f"remainder {', then '.join(measured)} over {pairs} pairs each; {text}",
        tolerance=f"interval touches +-{BALANCE_PCT:g} % and is at most {RESOLVED_PCT:g} % wide, beyond in "
        f"{NUM_SERIES} series fails; clocks within {CLOCKS_TOLERANCE:.0%} + {CLOCKS_TOLERANCE_MS} ms, and none copied",
    )


def _failed(records: Sequence[SampleRecord]) -> CheckResult | None:
    """Return the result of a run that failed; None if all were timed."""
    error = next((record.error or "a failed run" for record in records if record.status == "failed"), None)
    return None if error is None else judged("timing-additive", False, expected="timed runs", observed=error)


def _worse(*outcomes: TimedOutcome) -> TimedOutcome:
    order: tuple[TimedOutcome, ...] = ("fail", "inconclusive")
    return next((outcome for outcome in order if outcome in outcomes), "pass")


def _clocks(records: Sequence[SampleRecord]) -> tuple[TimedOutcome, str]:
    """Compare host and device times; other work on the host makes some of its times longer, and never all."""
    if not any(t.device_ms is not None for r in records for t in r.stages.values()):
        return "pass", "no device clock on this device"
    if mismatch := clock_mismatch(records, share=0.0):
        return "fail", mismatch
    least_ms = MIN_SPREAD_MS if host_time.is_system() else EXACT_MS
    if copied := copied_clock(records, least_ms):
        return "fail", copied
    mismatch = clock_mismatch(records, share=0.5)
    return ("inconclusive", mismatch) if mismatch else ("pass", "clocks agree")


def clock_mismatch(records: Sequence[SampleRecord], *, share: float = 0.5) -> str | None:
    """Return the first stage with a disagreement of the clocks, or None.

    Args:
        records: with host and device times.
        share: rank of the record that is judged, by the disagreement: 0 is the least, 0.5 the median.
    """
    for stage in _DEVICE_STAGES:
        times = sorted(
            ((t.host_ms, t.device_ms) for r in records if (t := r.stages.get(stage)) and t.device_ms is not None),
            key=lambda pair: abs(pair[0] - pair[1]),
        )
        if not times:
            continue
        host, device = times[int(share * len(times))]
        if abs(host - device) > CLOCKS_TOLERANCE * max(host, device) + CLOCKS_TOLERANCE_MS:
            return f"clocks disagree on {stage}: host {host:.3f} ms, device {device:.3f} ms"
    return None
