"""Energy of a piece of work, from a counter that moves in steps.

The work is repeated until the window between two readings of the counter is long against its steps. A window begins
at a change of the counter, so the reading there is exact. It ends where the work ends; the counter then lags behind
by at most one step. That step, at the power drawn, over the number of calls, is the resolution stated beside every
number. A window of too few steps gives no number.

What the board draws idle is part of what is measured, and measured beside it; nothing is taken off.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Final, Protocol

from unfuse.measure.nvml import Unread
from unfuse.runs.schema import StageEnergy

LEAST_STEPS: Final = 40
"""Steps of the counter in a window: the last one, which may be missing, is then at most 2.5 % of it."""
LONGEST: Final = 4
"""A window may be so many times longer than asked for where the counter is slow."""
_IDLE_STEPS: Final = 20
_IDLE_S: Final = 4.0
_POLL_S: Final = 0.0005


class Counter(Protocol):
    """What counts energy."""

    def energy_mj(self) -> int | Unread:
        """Since some moment, in mJ."""


class Time(Protocol):
    """Where time comes from; the module ``time`` is one."""

    def perf_counter(self) -> float:
        """In s."""

    def sleep(self, seconds: float, /) -> None:
        """Waits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Steps:
    """How a counter moves while the device idles."""

    period_s: float
    """Median time between two changes."""
    step_mj: float
    """Median change."""
    idle_watts: float


def counter_steps(counter: Counter, clock: Time = time) -> Steps | Unread:
    """Watches the counter of an idle device for at most a few seconds."""
    seen: list[tuple[float, int]] = []
    until = clock.perf_counter() + _IDLE_S
    while len(seen) <= _IDLE_STEPS:
        change = _next_change(counter, clock, until)
        if isinstance(change, Unread):
            if len(seen) < 3:
                return change
            break
        seen.append(change)
    (first_s, first_mj), (last_s, last_mj) = seen[0], seen[-1]
    pairs = list(pairwise(seen))
    return Steps(
        period_s=median(later - earlier for (earlier, _), (later, _) in pairs),
        step_mj=median(later - earlier for (_, earlier), (_, later) in pairs),
        idle_watts=(last_mj - first_mj) / 1000 / (last_s - first_s),
    )


def work_energy(
    counter: Counter,
    work: Callable[[], object],
    wait: Callable[[], None],
    steps: Steps,
    *,
    seconds: float,
    clock: Time = time,
) -> StageEnergy | Unread:
    """Energy of one call of ``work``.

    Args:
        counter: of the device that works.
        work: may return before the device is done.
        wait: returns when the device is done.
        steps: of the counter.
        seconds: the window, at least; up to ``LONGEST`` times as long where the counter's steps need it.
        clock: where time comes from.
    """
    needed = LEAST_STEPS * steps.period_s
    if needed > LONGEST * seconds:
        return Unread(
            f"the counter moves every {1000 * steps.period_s:.0f} ms, so that {LEAST_STEPS} steps take {needed:.1f} s: "
            f"more than {LONGEST} x --energy-seconds {seconds:g}"
        )
    wait()
    begun = _next_change(counter, clock, clock.perf_counter() + 2 * LEAST_STEPS * steps.period_s)
    if isinstance(begun, Unread):
        return begun
    begun_s, begun_mj = begun
    window, calls = max(seconds, needed), 0
    while clock.perf_counter() - begun_s < window:
        work()
        wait()
        calls += 1
    ended_mj = counter.energy_mj()
    taken = clock.perf_counter() - begun_s
    if isinstance(ended_mj, Unread):
        return ended_mj
    joules = (ended_mj - begun_mj) / 1000
    if joules <= 0:
        return Unread(f"the counter did not move in {taken:.1f} s of work")
    return StageEnergy(
        joules=joules / calls,
        resolution_joules=joules / taken * (steps.period_s + 2 * _POLL_S) / calls,
        calls=calls,
        seconds=taken,
    )


def _next_change(counter: Counter, clock: Time, until: float) -> tuple[float, int] | Unread:
    """When the counter next changes, in s, and to what."""
    before = counter.energy_mj()
    if isinstance(before, Unread):
        return before
    while clock.perf_counter() < until:
        now = counter.energy_mj()
        if isinstance(now, Unread):
            return now
        if now != before:
            return clock.perf_counter(), now
        clock.sleep(_POLL_S)
    return Unread("the energy counter does not move")
