"""Check ``hooks-agree``: hooks in the fused call and sub-spans of ``encode`` give equal times of tower and projector.

Both run the model's own modules, because an engine that replays them as graphs is faster than the fused call.
"""

from __future__ import annotations

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
from unfuse.verification.result import judged

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
    ratios: list[float] = []
    coverages: list[float] = []
    low = high = hooked_ms = 0.0
    # Collect once and not before each pair: a collection leaves cold caches to the path that runs its tower first.
    with settled_heap(), paused_gc():
        for _ in range(_NUM_WARMUPS):
            _encode(model, prepared, timer)
            _hooked(model, prepared, hooks or timer)
        while len(ratios) < pairs or (high - low > 2 * TOLERANCE and len(ratios) < _MAX_FACTOR * pairs):
            spans_ms, stage_ms = _encode(model, prepared, timer)
            # Both find the caches as a decoder leaves them: a small tower right after itself is a tenth faster.
            model.fused(prepared, _TOKENS)
            hooked_ms = _hooked(model, prepared, hooks or timer)
            ratios.append(hooked_ms / spans_ms if spans_ms else float("inf"))
            coverages.append(min(spans_ms, hooked_ms) / stage_ms)
            low, high = order_interval(np.array(ratios))
    ratio, coverage = float(np.median(ratios)), float(np.median(coverages))
    agree = low <= 1 + TOLERANCE and high >= 1 - TOLERANCE
    return judged(
        "hooks-agree",
        agree and coverage >= MIN_COVERAGE,
        expected="hooks see in the fused call what encode's sub-spans see",
        observed=f"hooks / sub-spans {ratio:.3f} [{low:.3f}, {high:.3f}] over {len(ratios)} pairs, "
        f"last {hooked_ms:.3f} ms; they fill {coverage:.0%} of the synchronised stage",
        tolerance=f"interval touches 1 +- {TOLERANCE:g}; at least {MIN_COVERAGE:.0%} filled",
    )


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
