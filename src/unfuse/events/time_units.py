"""Units of time in event files, and the decision for a file that does not state its unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from unfuse.errors import EventStreamError

TimeUnit = Literal["s", "ms", "us", "ns"]
"""Unit of times in a file."""
_MICROSECONDS: Final[Mapping[str, float]] = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}
_WORDS: Final = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_EPOCH_NS: Final = (1e17, 1e19)
"""Nanoseconds since 1970, in 1973 and 2286: as microseconds they would be thousands of years."""
_MANY: Final = 100
_SLOWEST: Final = 10.0
_FASTEST: Final = 1e10
"""Events per second between which a unit is believed, for many events. A sensor sends 1e2 to 1e9."""
_FIX: Final = "state the unit with --time-unit, or as the name of the column (such as t_us)"


@dataclass(frozen=True, slots=True)
class ChosenUnit:
    """Unit of a file's times, and the sentence that says why."""

    unit: str
    note: str
    whole: bool
    """Whether the unit was chosen because every time is a whole number."""


def choose_unit(times: NDArray[np.float64], source: str) -> ChosenUnit:
    """Decide the unit from many times of a file.

    Times with fractions are seconds, whole numbers are microseconds, also with a decimal point or an exponent.

    Raises:
        EventStreamError: the unit would give a rate of events that no sensor has.
    """
    whole = bool((times == np.rint(times)).all())
    unit = "s" if not whole else "ns" if len(times) and _EPOCH_NS[0] <= times.max() < _EPOCH_NS[1] else "us"
    span = float(times[-1] - times[0]) * _MICROSECONDS[unit] / 1e6 if len(times) else 0.0
    rate = len(times) / span if span > 0 else 0.0
    kind = "whole numbers" if whole else "numbers with fractions"
    if len(times) >= _MANY and rate and not _SLOWEST <= rate <= _FASTEST:
        raise EventStreamError(
            f"{source}: t",
            found=f"{kind} that would be {rate:.3g} events per second in {_WORDS[unit]}",
            expected="times of a known unit",
            fix=_FIX,
        )
    return ChosenUnit(unit, f"times read as {_WORDS[unit]}: {kind}; --time-unit states another unit", whole)


def to_microseconds(times: NDArray[Any], unit: str | None, source: str) -> NDArray[Any]:
    """Return times in microseconds, rounded to whole ones; integers stay exact.

    Args:
        times: integers or floats.
        unit: a ``TimeUnit``; None is microseconds.
        source: name for messages.

    Raises:
        EventStreamError: a time is too large.
    """
    if unit is None or (unit == "us" and times.dtype.kind != "f"):
        return times
    if times.dtype.kind in "iu":
        if unit == "ns":
            nanoseconds: NDArray[Any] = times // 1000
            return nanoseconds
        factor = int(_MICROSECONDS[unit])
        if len(times) and int(np.abs(times.astype(np.float64)).max()) >= 2**62 // factor:
            raise EventStreamError(f"{source}: t", found=int(times.max()), expected=f"times in {_WORDS[unit]}")
        return times.astype(np.int64) * factor
    rounded: NDArray[Any] = np.rint(times * _MICROSECONDS[unit])
    return rounded
