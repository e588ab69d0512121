"""Check ``hooks-agree``: hooks in the fused call and sub-spans of ``encode`` see the same tower and projector.

Both run the model's own modules: an engine that replays them as graphs is faster than the fused call, as it is to be.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from unfuse.measure.clock import StageClock, paused_gc, settled_heap
from unfuse.measure.hooks import module_spans
from unfuse.measure.timers import DeviceTimer
from unfuse.report.statistics import order_interval
from unfuse.runs.schema import FUSED_STAGE, StageTime
from unfuse.staged_model import StagedModel
from unfuse.stages import Prepared
from unfuse.verification.result import CheckResult, judged

WITHIN: Final = 0.05
COVER: Final = 0.5
"""Share of the synchronised ``encode`` that tower and projector must fill: hooks that do not wait see far less."""
_PAIRS: Final = 15
_PATIENCE: Final = 4
"""Times as many pairs are made at most where the interval stays wider than the tolerance."""
_WARM: Final = 2
_TOKENS: Final = 2


def hooks_agree(
    model: StagedModel, prepared: Prepared, timer: DeviceTimer, *, pairs: int = _PAIRS, hooks: DeviceTimer | None = None
) -> CheckResult:
    """Tower and projector in the fused call against the same in ``encode``; both are batched over frames.

    Args:
        model: loaded.
        prepared: one sample.
        timer: of the device.
        pairs: how many at least.
        hooks: the timer that the hooks read; ``timer`` by default.
    """
    ratios: list[float] = []
    covers: list[float] = []
    low = high = seen = 0.0
    # Collected once and not before each turn: that leaves cold caches to whichever path runs its tower first.
    with settled_heap(), paused_gc():
        for _ in range(_WARM):
            _encode(model, prepared, timer)
            _hooked(model, prepared, hooks or timer)
        while len(ratios) < pairs or (high - low > 2 * WITHIN and len(ratios) < _PATIENCE * pairs):
            apart, whole = _encode(model, prepared, timer)
            # Both meet the caches as a decoder leaves them: a small tower right after itself is a tenth faster.
            model.fused(prepared, _TOKENS)
            seen = _hooked(model, prepared, hooks or timer)
            ratios.append(seen / apart if apart else float("inf"))
            covers.append(min(apart, seen) / whole)
            low, high = order_interval(np.array(ratios))
    middle, cover = float(np.median(ratios)), float(np.median(covers))
    agree = low <= 1 + WITHIN and high >= 1 - WITHIN
    return judged(
        "hooks-agree",
        agree and cover >= COVER,
        expected="hooks see in the fused call what encode's sub-spans see",
        observed=f"hooks / sub-spans {middle:.3f} [{low:.3f}, {high:.3f}] over {len(ratios)} pairs, "
        f"last {seen:.3f} ms; they fill {cover:.0%} of the synchronised stage",
        tolerance=f"interval touches 1 +- {WITHIN:g}; at least {COVER:.0%} filled",
    )


def _encode(model: StagedModel, prepared: Prepared, timer: DeviceTimer) -> tuple[float, float]:
    """Sum of the sub-spans of tower and projector, and the synchronised stage, in ms."""
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
