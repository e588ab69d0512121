"""Check ``hooks-agree``: hooks in the fused call and sub-spans of ``encode`` give equal times of tower and projector.

Both run the model's own modules, because an engine that replays them as graphs is faster than the fused call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from unfuse.measure.clock import StageClock, paused_gc, settled_heap
from unfuse.measure.hooks import module_spans
from unfuse.measure.timers import DeviceTimer
from unfuse.records.schema import FUSED_STAGE, StageTime
from unfuse.records.verification_file import CheckResult
from unfuse.report.statistics import order_interval
from unfuse.staged_model import StagedModel
from unfuse.stages import Prepared
from unfuse.verification.repeated import NUM_SERIES, Reading, decide
from unfuse.verification.result import timed

TOLERANCE: Final = 0.05
MIN_COVERAGE: Final = 0.5
"""Least share of tower and projector in the synchronised ``encode``: hooks that do not wait see far less."""
_PAIRS: Final = 15
_MAX_FACTOR: Final = 4
"""Limit of the pairs, as a multiple of ``pairs``, if the interval stays wider than the tolerance."""
_NUM_WARMUPS: Final = 2
_TOKENS: Final = 2


def hooks_agree(
    model: StagedModel, prepared: Prepared, timer: DeviceTimer, *, pairs: int = _PAIRS, hooks: DeviceTimer | None = None
) -> CheckResult:
    """Compare tower and projector in the fused call with those in ``encode``; both are batched over frames.

    Args:
        model: loaded.
        prepared: one sample.
        timer: of the device.
        pairs: least number of pairs.
        hooks: the timer that the hooks read; ``timer`` by default.
    """
    pair = _Pair(model, prepared, timer, hooks or timer)
    coverages: list[float] = []
    measured: list[str] = []
    # Collect once and not before each pair: a collection leaves cold caches to the path that runs its tower first.
    with settled_heap(), paused_gc():
        for _ in range(_NUM_WARMUPS):
            pair.measure()

        def series() -> Reading:
            ratio, reading, coverage = _series(pair, pairs)
            coverages.append(coverage)
            measured.append(f"{ratio:.3f} [{reading.low:.3f}, {reading.high:.3f}]")
            if coverage < MIN_COVERAGE:
                return Reading(low=coverage, high=coverage, least=MIN_COVERAGE, most=1.0, widest=0.0)
            return reading

        outcome = decide(series)
    return timed(
        "hooks-agree",
        outcome,
        expected="hooks see in the fused call what encode's sub-spans see",
        observed=f"hooks / sub-spans {', then '.join(measured)}, last {pair.hooked_ms:.3f} ms; "
        f"they fill {coverages[-1]:.0%} of the synchronised stage",
        tolerance=f"interval touches 1 +- {TOLERANCE:g} and is at most {2 * TOLERANCE:g} wide, beyond in {NUM_SERIES} "
        f"series fails; at least {MIN_COVERAGE:.0%} filled",
    )


@dataclass(slots=True)
class _Pair:
    """One measurement of both paths."""

    model: StagedModel
    prepared: Prepared
    timer: DeviceTimer
    hooks: DeviceTimer
    """Timer that the hooks read."""
    hooked_ms: float = 0.0

    def measure(self) -> tuple[float, float]:
        """Return hooks over sub-spans, and the share of the shorter of both in the synchronised stage."""
        spans_ms, stage_ms = _encode(self.model, self.prepared, self.timer)
        # Both find the caches as a decoder leaves them: a small tower right after itself is a tenth faster.
        self.model.fused(self.prepared, _TOKENS)
        self.hooked_ms = _hooked(self.model, self.prepared, self.hooks)
        ratio = self.hooked_ms / spans_ms if spans_ms else float("inf")
        return ratio, min(spans_ms, self.hooked_ms) / stage_ms if stage_ms else 0.0


def _series(pair: _Pair, pairs: int) -> tuple[float, Reading, float]:
    """Measure pairs until the ratio is known to the tolerance; return it, its interval, and the median share."""
    found: list[tuple[float, float]] = []
    low = high = 0.0
    while len(found) < pairs or (high - low > 2 * TOLERANCE and len(found) < _MAX_FACTOR * pairs):
        found.append(pair.measure())
        low, high = order_interval(np.array([ratio for ratio, _ in found]))
    reading = Reading(low=low, high=high, least=1 - TOLERANCE, most=1 + TOLERANCE, widest=2 * TOLERANCE)
    ratio, coverage = np.median(found, axis=0)
    return float(ratio), reading, float(coverage)


def _encode(model: StagedModel, prepared: Prepared, timer: DeviceTimer) -> tuple[float, float]:
    """Return the sum of the sub-spans of tower and projector, and the synchronised stage, in ms."""
    clock = StageClock(timer)
    with clock.stage("encode"):
        model.adapter.encode(prepared)
    names = model.adapter.vision_modules()
    spans = [clock.spans[f"encode.{name}"] for name in names if f"encode.{name}" in clock.spans]
    return sum(map(_ms, spans)), clock.stages["encode"].host_ms


def _hooked(model: StagedModel, prepared: Prepared, timer: DeviceTimer) -> float:
    clock = StageClock(timer)
    with module_spans(model.adapter.vision_modules()), clock.stage(FUSED_STAGE):
        model.fused(prepared, _TOKENS)
    return sum(map(_ms, clock.spans.values()))


def _ms(time: StageTime) -> float:
    return time.host_ms if time.device_ms is None else time.device_ms
