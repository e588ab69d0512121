"""Measure the energy of a piece of work with a counter that moves in steps.

NVML's total energy is updated every 20 to 100 ms; it is constant between two updates. The true energy at a moment lies
between the last update before that moment and the first one after it, because energy never falls. So the energy ``W``
of the work from ``start`` to ``end`` is bounded by readings of the counter alone:

    E(last update before end) - E(start)  <=  W  <=  E(first update after end) - E(start)

The work starts when an update is seen, so ``E(start)`` is that update plus the energy of the idle board until then:
at most the idle power times the time since the last reading without the update. The middle of the interval is the
result and half its width the resolution: a bound for every power of the work, constant or not, every period of the
counter and every phase. It assumes that an update is right when it appears, and that the power of the idle board did
not rise between the two updates before ``start`` and ``start``.

The energy of the idle board is part of the result and is measured beside it. Nothing is subtracted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Final, Protocol

from unfuse.records.schema import StageEnergy
from unfuse.unavailable import Unavailable

LEAST_STEPS: Final = 40
"""Counter steps in a window. The resolution is half a step, so at most 1.25 % of the energy of steady work."""
LONGEST: Final = 4
"""A slow counter may stretch the window to this multiple of the time asked for."""
_IDLE_STEPS: Final = 20
_IDLE_S: Final = 4.0
_POLL_S: Final = 0.0005
_ATTEMPTS: Final = 200
_MJ: Final = 1
"""The counter reports whole mJ, rounded down."""


class Counter(Protocol):
    """Interface of an energy counter."""

    def energy_mj(self) -> int | Unavailable:
        """Return the energy since a fixed moment, in mJ."""


class SystemTime(Protocol):
    """Source of time, such as the module ``time``."""

    def perf_counter(self) -> float:
        """Return the time in s."""

    def sleep(self, seconds: float, /) -> None:
        """Wait."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CounterSteps:
    """Steps of a counter while the device is idle."""

    period_s: float
    """Median time between two changes."""
    step_mj: float
    """Median change."""
    idle_watts: float


def counter_steps(counter: Counter, clock: SystemTime = time) -> CounterSteps | Unavailable:
    """Watch the counter of an idle device, for a few seconds at most."""
    seen: list[_Update] = []
    until = clock.perf_counter() + _IDLE_S
    while len(seen) <= _IDLE_STEPS:
        update = _next_update(counter, clock, until - clock.perf_counter())
        if isinstance(update, Unavailable):
            if len(seen) < 3:
                return update
            break
        seen.append(update)
    pairs = list(pairwise(seen))
    return CounterSteps(
        period_s=median(later.seen_s - earlier.seen_s for earlier, later in pairs),
        step_mj=median(later.energy_mj - earlier.energy_mj for earlier, later in pairs),
        idle_watts=(seen[-1].energy_mj - seen[0].energy_mj) / 1000 / (seen[-1].seen_s - seen[0].seen_s),
    )


def work_energy(
    counter: Counter,
    work: Callable[[], object],
    wait: Callable[[], None],
    steps: CounterSteps,
    *,
    seconds: float,
    clock: SystemTime = time,
) -> StageEnergy | Unavailable:
    """Measure the energy of one call of ``work``: the middle of an interval that holds it, and half the width.

    Args:
        counter: of the device that works.
        work: may return before the device is done.
        wait: returns when the device is done.
        steps: of the counter.
        seconds: the window, at least; up to ``LONGEST`` times as long if the counter's steps need it.
        clock: source of time.
    """
    needed = LEAST_STEPS * steps.period_s
    if needed > LONGEST * seconds:
        return Unavailable(
            f"the counter moves every {1000 * steps.period_s:.0f} ms, so that {LEAST_STEPS} steps take {needed:.1f} s: "
            f"more than {LONGEST} x --energy-seconds {seconds:g}"
        )
    wait()
    patience_s = 2 * LEAST_STEPS * steps.period_s
    aligned = _aligned_start(counter, clock, patience_s)
    if isinstance(aligned, Unavailable):
        return aligned
    start, unseen_mj = aligned
    window, calls = max(seconds, needed), 0
    while clock.perf_counter() - start.seen_s < window:
        work()
        wait()
        calls += 1
    taken = clock.perf_counter() - start.seen_s
    least_mj = counter.energy_mj()
    if isinstance(least_mj, Unavailable):
        return least_mj
    end = _next_update(counter, clock, patience_s, standing_mj=least_mj)
    if isinstance(end, Unavailable):
        return end
    low_mj = max(0.0, least_mj - start.energy_mj - _MJ - unseen_mj)
    high_mj = end.energy_mj + _MJ - start.energy_mj
    return StageEnergy(
        joules=(low_mj + high_mj) / 2 / 1000 / calls,
        resolution_joules=(high_mj - low_mj) / 2 / 1000 / calls,
        calls=calls,
        seconds=taken,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Update:
    """One update of the counter: it happened after ``unchanged_s`` and not later than ``seen_s``."""

    unchanged_s: float
    seen_s: float
    energy_mj: int


def _aligned_start(counter: Counter, clock: SystemTime, patience_s: float) -> tuple[_Update, float] | Unavailable:
    """Wait for an update of the idle device; return it and the most that the board drew until it was seen, in mJ."""
    before = _next_update(counter, clock, patience_s)
    for _ in range(_ATTEMPTS):
        if isinstance(before, Unavailable):
            return before
        start = _next_update(counter, clock, patience_s)
        if isinstance(start, Unavailable):
            return start
        standing_s, unseen_s = start.unchanged_s - before.seen_s, start.seen_s - start.unchanged_s
        if standing_s >= unseen_s:
            # Mean power of the step: its energy over the least time that it took.
            return start, (start.energy_mj - before.energy_mj + _MJ) / standing_s * unseen_s
        before = start  # the polling was interrupted
    return Unavailable(f"the counter was never read in time: {_ATTEMPTS} updates were seen too late")


def _next_update(
    counter: Counter, clock: SystemTime, patience_s: float, *, standing_mj: int | None = None
) -> _Update | Unavailable:
    """Poll until the counter moves.

    Args:
        counter: to read.
        clock: source of time.
        patience_s: time in s; a counter that is constant for so long is taken as stopped.
        standing_mj: the reading to wait beyond; read first if it is not given.
    """
    until = clock.perf_counter() + patience_s
    unchanged_s = clock.perf_counter()
    standing = counter.energy_mj() if standing_mj is None else standing_mj
    while not isinstance(standing, Unavailable):
        polled_s = clock.perf_counter()
        now = counter.energy_mj()
        if isinstance(now, Unavailable):
            return now
        if now != standing:
            return _Update(unchanged_s=unchanged_s, seen_s=clock.perf_counter(), energy_mj=now)
        if polled_s >= until:
            return Unavailable("the energy counter does not move")
        unchanged_s = polled_s
        clock.sleep(_POLL_S)
    return standing
