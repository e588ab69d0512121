"""Check ``steady``: a sample takes as long at the end of a series as at its beginning."""

from __future__ import annotations

from typing import Final

from unfuse.measure.clock import StageClock, paused_gc, settled_heap
from unfuse.measure.timers import DeviceTimer
from unfuse.pipeline import run
from unfuse.report.statistics import DRIFT_PCT, Drift, drift
from unfuse.samples import Sample
from unfuse.staged_model import StagedModel
from unfuse.stages import Sampling
from unfuse.verification.result import CheckResult, judged

_RUNS: Final = 40
_WARM: Final = 5
_TOKENS: Final = 4
_SERIES: Final = 3


def steady(model: StagedModel, sample: Sample, timer: DeviceTimer, *, runs: int = _RUNS) -> CheckResult:
    """Short staged runs of one sample, one after the other.

    A machine that gets busier drifts too. So a drift is only believed where every one of three series shows it in the
    same direction; a model that slows down as it is used does.
    """
    found: list[Drift] = []
    with settled_heap():
        for _ in range(_SERIES):
            seen = drift(_series(model, sample, timer, runs))
            assert seen is not None
            found.append(seen)
            if not seen.found:
                break
    last = found[-1]
    drifting = len(found) == _SERIES and last.found and len({d.change_pct > 0 for d in found}) == 1
    shown = "; ".join(f"{d.change_pct:+.1f} % [{d.ci_low_pct:+.1f}, {d.ci_high_pct:+.1f}]" for d in found)
    return judged(
        "steady",
        not drifting,
        expected="no drift over the samples",
        observed=f"change over {runs} runs: {shown}",
        tolerance=f"slope's 95 % interval holds 0 or the change is at most {DRIFT_PCT:g} %; "
        f"else repeated, up to {_SERIES} series",
    )


def _series(model: StagedModel, sample: Sample, timer: DeviceTimer, runs: int) -> list[float]:
    totals = []
    for _ in range(_WARM + runs):
        clock = StageClock(timer)
        with paused_gc():
            run(model, sample, clock, sampling=Sampling(ignore_eos=True), max_new_tokens=_TOKENS)
        totals.append(sum(stage.host_ms for stage in clock.stages.values()))
    return totals[_WARM:]
