"""Check ``timing-additive``: the stages add up to the separately measured whole, and the two clocks agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from unfuse.measure.clock import settled_heap
from unfuse.measure.timers import DeviceTimer
from unfuse.protocols.decoupled import DECOUPLED
from unfuse.protocols.pairs import Pairs
from unfuse.protocols.protocol import BenchProtocol
from unfuse.protocols.settings import BenchSettings
from unfuse.report.statistics import balance
from unfuse.runs.schema import SampleRecord
from unfuse.samples import Sample
from unfuse.staged_model import StagedModel
from unfuse.verification.result import CheckResult, judged

PAIRS: Final = 12
CLOCKS_WITHIN: Final = 0.05
"""Host and device time of a stage may differ by this share of the longer one ..."""
CLOCKS_WITHIN_MS: Final = 0.3
"""... and by this much: launching the first and seeing the last of a stage's work."""
SHORT_MS: Final = 100.0
"""A run on a device that takes less is made longer ..."""
LONGER: Final = 512
"""... by answers of so many tokens."""
_BUSY: Final = ("encode", "prefill", "decode")

MakePairs = Callable[[BenchProtocol, StagedModel, DeviceTimer, BenchSettings], Pairs]


def timing_additive(
    model: StagedModel,
    sample: Sample,
    timer: DeviceTimer,
    max_new_tokens: int,
    *,
    pairs: int = PAIRS,
    make: MakePairs = Pairs,
) -> CheckResult:
    """Staged and unstaged runs of one sample in pairs.

    An edge between two stages costs a device the work that the host would have had ready for it. Where a run is over so
    soon that this alone is more than the tolerance, it says nothing of the stages, and longer answers are timed.
    """
    settings = BenchSettings(max_new_tokens=max_new_tokens)
    with settled_heap():
        measuring = make(DECOUPLED, model, timer, settings)
        first = [record for record in measuring.measure(sample) if record.status == "ok" and not record.warmup]
        if model.device.type != "cpu" and first and first[0].total_host_ms < SHORT_MS:
            measuring = make(DECOUPLED, model, timer, BenchSettings(output_length=max(LONGER, max_new_tokens)))
            for _ in measuring.measure(sample):
                pass
        records = [record for _ in range(pairs) for record in measuring.measure(sample) if not record.warmup]
    if failed := [record for record in records if record.status == "failed"]:
        return judged("timing-additive", False, expected="timed runs", observed=failed[0].error or "a failed run")
    found = balance([(r.total_host_ms, r.e2e_host_ms) for r in records if r.e2e_host_ms is not None])
    apart = clocks_apart(records)
    return judged(
        "timing-additive",
        found.adds_up and not apart,
        expected="sum of stages = end to end; host and device clocks agree where the device is busy",
        observed=f"remainder {found.remainder_pct:+.2f} % "
        f"[{found.ci_low_pct:+.2f}, {found.ci_high_pct:+.2f}] over {len(records)} pairs; "
        + (apart or _clocks_line(records)),
        tolerance=f"interval touches +-1 %; clocks within {CLOCKS_WITHIN:.0%} + {CLOCKS_WITHIN_MS} ms",
    )


def clocks_apart(records: Sequence[SampleRecord]) -> str | None:
    """The first stage on which the clocks disagree in the median record, or None."""
    for stage in _BUSY:
        times = sorted(
            ((t.host_ms, t.device_ms) for r in records if (t := r.stages.get(stage)) and t.device_ms is not None),
            key=lambda pair: pair[0] - pair[1],
        )
        if not times:
            continue
        host, device = times[len(times) // 2]
        if abs(host - device) > CLOCKS_WITHIN * max(host, device) + CLOCKS_WITHIN_MS:
            return f"clocks disagree on {stage}: host {host:.3f} ms, device {device:.3f} ms"
    return None


def _clocks_line(records: Sequence[SampleRecord]) -> str:
    has_device = any(t.device_ms is not None for r in records for t in r.stages.values())
    return "clocks agree" if has_device else "no device clock on this device"
