"""Check ``steady``: a sample takes as long at the end of a series as at its beginning."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Final

from unfuse.measure import host_time
from unfuse.measure.clock import StageClock, paused_gc, settled_heap
from unfuse.measure.timers import DeviceTimer
from unfuse.pipeline import run
from unfuse.records.verification_file import CheckResult
from unfuse.report.statistics import DRIFT_PCT, Drift, drift
from unfuse.samples import Sample
from unfuse.staged_model import StagedModel
from unfuse.stages import Sampling
from unfuse.verification.repeated import NUM_SERIES, Reading, decide
from unfuse.verification.result import timed

RESOLVED_PCT: Final = 10.0
"""Width of the interval of a change that still answers the check."""
_NUM_RUNS: Final = 40
_NUM_WARMUPS: Final = 5
_TOKENS: Final = 4
_COUNT: Final = 20_000
"""Additions of the reference work, which takes about a millisecond."""


def steady(model: StagedModel, sample: Sample, timer: DeviceTimer, *, runs: int = _NUM_RUNS) -> CheckResult:
    """Time short staged runs of one sample, one after the other, and beside each a fixed work of the host.

    A machine that gets busier drifts too. So a drift counts only if all three series show it in one direction, as
    with a model that slows down with use, if each series goes on where the last one ended, and if the fixed work shows
    none.
    """
    drifts: list[Drift] = []
    levels: list[float] = []

    def series() -> Reading:
        of_model, of_host, level = _series(model, sample, timer, runs)
        drifts.append(of_model)
        levels.append(level)
        low, high = of_model.ci_low_pct, of_model.ci_high_pct
        if not of_model.found:
            return Reading(low=low, high=high, least=low, most=high, widest=RESOLVED_PCT)
        if _is_noise(of_model, of_host):
            return Reading(low=low, high=high, least=low, most=high, widest=0.0)
        return Reading(low=low, high=high, least=0.0, most=0.0, widest=RESOLVED_PCT)

    with settled_heap():
        outcome = decide(series)
    if outcome == "fail" and not _goes_on(levels, drifts[-1].change_pct):
        outcome = "inconclusive"
    shown = "; ".join(f"{d.change_pct:+.1f} % [{d.ci_low_pct:+.1f}, {d.ci_high_pct:+.1f}]" for d in drifts)
    return timed(
        "steady",
        outcome,
        expected="no drift over the samples",
        observed=f"change over {runs} runs: {shown}",
        tolerance=f"slope's 95 % interval holds 0 or the change is at most {DRIFT_PCT:g} %, and the interval is "
        f"at most {RESOLVED_PCT:g} % wide; a drift in {NUM_SERIES} series without one of the host fails",
    )


def _is_noise(of_model: Drift, of_host: Drift | None) -> bool:
    """Return whether the host drifts too, or the interval is wider than the change that it holds."""
    host_too = of_host is not None and of_host.found and of_host.change_pct * of_model.change_pct > 0
    width = of_model.ci_high_pct - of_model.ci_low_pct
    return host_too or width > max(abs(of_model.change_pct), RESOLVED_PCT)


def _goes_on(levels: Sequence[float], change_pct: float) -> bool:
    """Return whether each series is slower than the one before, or faster, as its runs are."""
    return all((later > earlier) == (change_pct > 0) for earlier, later in pairwise(levels))


def _series(model: StagedModel, sample: Sample, timer: DeviceTimer, runs: int) -> tuple[Drift, Drift | None, float]:
    """Return the drift of the model, that of the fixed work if it took time, and the median time of a run in ms."""
    totals, references = [], []
    for _ in range(_NUM_WARMUPS + runs):
        clock = StageClock(timer)
        with paused_gc():
            run(model, sample, clock, sampling=Sampling(ignore_eos=True), max_new_tokens=_TOKENS)
        totals.append(sum(stage.host_ms for stage in clock.stages.values()))
        references.append(_reference_ms())
    found = drift(totals[_NUM_WARMUPS:])
    assert found is not None
    return found, drift(references[_NUM_WARMUPS:]), median(totals[_NUM_WARMUPS:])


def _reference_ms() -> float:
    started = host_time.now_ns()
    sum(range(_COUNT))
    return (host_time.now_ns() - started) / 1e6
