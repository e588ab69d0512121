"""Check ``steady``: a sample takes as long at the end of a series as at its beginning."""

from __future__ import annotations

from typing import Final

from unfuse.measure.clock import StageClock, paused_gc, settled_heap
from unfuse.measure.timers import DeviceTimer
from unfuse.pipeline import run
from unfuse.records.verification_file import CheckResult
from unfuse.report.statistics import DRIFT_PCT, Drift, drift
from unfuse.samples import Sample
from unfuse.staged_model import StagedModel
from unfuse.stages import Sampling
from unfuse.verification.result import judged

_NUM_RUNS: Final = 40
_NUM_WARMUPS: Final = 5
_TOKENS: Final = 4
_NUM_SERIES: Final = 3


def steady(model: StagedModel, sample: Sample, timer: DeviceTimer, *, runs: int = _NUM_RUNS) -> CheckResult:
    """Time short staged runs of one sample, one after the other.

    A machine that gets busier drifts too. So a drift counts only if all three series show it in one direction, as
    with a model that slows down with use.
    """
    drifts: list[Drift] = []
    with settled_heap():
        for _ in range(_NUM_SERIES):
            last = drift(_series(model, sample, timer, runs))
            assert last is not None
            drifts.append(last)
            if not last.found:
                break
    drifting = len(drifts) == _NUM_SERIES and drifts[-1].found and len({d.change_pct > 0 for d in drifts}) == 1
    shown = "; ".join(f"{d.change_pct:+.1f} % [{d.ci_low_pct:+.1f}, {d.ci_high_pct:+.1f}]" for d in drifts)
    return judged(
        "steady",
        not drifting,
        expected="no drift over the samples",
        observed=f"change over {runs} runs: {shown}",
        tolerance=f"slope's 95 % interval holds 0 or the change is at most {DRIFT_PCT:g} %; "
        f"else repeated, up to {_NUM_SERIES} series",
    )


def _series(model: StagedModel, sample: Sample, timer: DeviceTimer, runs: int) -> list[float]:
    totals = []
    for _ in range(_NUM_WARMUPS + runs):
        clock = StageClock(timer)
        with paused_gc():
            run(model, sample, clock, sampling=Sampling(ignore_eos=True), max_new_tokens=_TOKENS)
        totals.append(sum(stage.host_ms for stage in clock.stages.values()))
    return totals[_NUM_WARMUPS:]
