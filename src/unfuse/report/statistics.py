"""The statistics that a report prints, each defined once.

Bootstrap intervals are percentile intervals of the median (Efron 1979; ``scipy.stats.bootstrap``), 95 %, with a fixed
seed so that a report can be made again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

_CONFIDENCE: Final = 0.95
_BALANCE_CONFIDENCE: Final = 0.99
_RESAMPLES: Final = 2000
_SEED: Final = 0
DRIFT_PCT: Final = 3.0
_DRIFT_POINTS: Final = 1000
NOISE_PCT: Final = 10.0
BALANCE_PCT: Final = 1.0
MIN_PAIRS: Final = 5
MIN_FOR_DRIFT: Final = 10
MIN_FOR_FIRST: Final = 5
"""Below so many measured samples, the first is not compared with the others."""
UNRESOLVED_PCT: Final = 10.0
SLOW_FIRST: Final = 1.5
MIN_POINTS: Final = 5
_MIN_DISTINCT: Final = 3
_OUTLIER_MADS: Final = 14.826
"""hyperfine's limit: ten normal standard deviations, estimated by the median absolute deviation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Distribution:
    """Summary of one quantity; the values stay with it."""

    unit: str
    count: int
    mean: float
    std: float | None
    """Sample standard deviation; None for one value."""
    min: float
    max: float
    p50: float
    p90: float
    p99: float
    ci_low: float | None
    """95 % bootstrap interval of the median; None for one value."""
    ci_high: float | None
    values: tuple[float, ...]


def distribution(values: Sequence[float], unit: str) -> Distribution | None:
    """Summarise values; None for no values."""
    if not values:
        return None
    array = np.asarray(values, dtype=np.float64)
    low, high = median_interval(array) or (None, None)
    p50, p90, p99 = (float(q) for q in np.percentile(array, [50, 90, 99]))
    return Distribution(
        unit=unit,
        count=len(array),
        mean=float(array.mean()),
        std=float(array.std(ddof=1)) if len(array) > 1 else None,
        min=float(array.min()),
        max=float(array.max()),
        p50=p50,
        p90=p90,
        p99=p99,
        ci_low=low,
        ci_high=high,
        values=tuple(float(v) for v in array),
    )


def median_interval(array: NDArray[np.float64]) -> tuple[float, float] | None:
    """Return the 95 % interval of the median, or None for fewer than two values."""
    from scipy import stats

    if len(array) < 2:
        return None
    if np.ptp(array) == 0:
        return float(array[0]), float(array[0])
    found = stats.bootstrap(
        (array,),
        np.median,
        n_resamples=_RESAMPLES,
        confidence_level=_CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(_SEED),
    )
    # Interpolating between equal values may overshoot them by a rounding.
    low, high = np.clip(found.confidence_interval, array.min(), array.max())
    return float(low), float(high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """Ratio of the times of two models or runs."""

    value: float
    """Ratio of medians."""
    low: float | None
    """95 % bootstrap interval; None for fewer than two samples."""
    high: float | None
    paired: bool
    """Whether both were measured on common samples, which are then resampled together."""


def ratio(a: Mapping[str, float], b: Mapping[str, float]) -> Ratio | None:
    """Return the median of ``a`` over the median of ``b``, both by sample id; over the common samples if there are any.

    Return None if either is empty or ``b`` takes no time.
    """
    from scipy import stats

    common = [name for name in a if name in b]
    x = np.array([a[name] for name in common] if common else list(a.values()), dtype=np.float64)
    y = np.array([b[name] for name in common] if common else list(b.values()), dtype=np.float64)
    if not len(x) or not len(y) or not np.median(y):
        return None
    low = high = None
    if min(len(x), len(y)) > 1:
        found = stats.bootstrap(
            (x, y),
            lambda p, q, axis: np.median(p, axis=axis) / np.median(q, axis=axis),
            paired=bool(common),
            n_resamples=_RESAMPLES,
            confidence_level=_CONFIDENCE,
            method="percentile",
            vectorized=True,
            rng=np.random.default_rng(_SEED),
        ).confidence_interval
        low, high = float(found.low), float(found.high)
    return Ratio(value=float(np.median(x) / np.median(y)), low=low, high=high, paired=bool(common))


@dataclass(frozen=True, kw_only=True, slots=True)
class Balance:
    """End-to-end time outside of the stages, in % of the end-to-end time."""

    pairs: int
    remainder_pct: float
    """Median over pairs of ``(end to end - sum of stages) / end to end``."""
    ci_low_pct: float
    ci_high_pct: float
    """Interval of the median at 99 %, from order statistics: exact whatever the noise looks like."""

    @property
    def enough(self) -> bool:
        """True if there are enough pairs to judge."""
        return self.pairs >= MIN_PAIRS

    @property
    def text(self) -> str:
        """The remainder with its interval."""
        return f"{self.remainder_pct:+.2f} % [{self.ci_low_pct:+.2f}, {self.ci_high_pct:+.2f}]"

    @property
    def adds_up(self) -> bool:
        """False only if the whole interval lies beyond 1 %, so a real gap fails and noise does not."""
        return self.enough and self.ci_low_pct <= BALANCE_PCT and self.ci_high_pct >= -BALANCE_PCT


def balance(pairs: Sequence[tuple[float, float]]) -> Balance:
    """Return the balance of (sum of stages, end to end) pairs, in any one unit."""
    if not pairs:
        return Balance(pairs=0, remainder_pct=0.0, ci_low_pct=0.0, ci_high_pct=0.0)
    gaps = np.array([(whole - parts) / whole * 100 for parts, whole in pairs])
    median = float(np.median(gaps))
    low, high = order_interval(gaps)
    return Balance(pairs=len(gaps), remainder_pct=median, ci_low_pct=low, ci_high_pct=high)


def order_interval(array: NDArray[np.float64]) -> tuple[float, float]:
    """Return the interval between two order statistics that holds the median with at least 99 % (binomial, David 1981).

    A bootstrap of few and heavy-tailed values is too narrow, and would call noise a gap. Below 8 values no two order
    statistics reach 99 %; the whole range is taken then.
    """
    from scipy import stats

    ordered = np.sort(array)
    below = max(int(stats.binom.ppf((1 - _BALANCE_CONFIDENCE) / 2, len(array), 0.5)) - 1, 0)
    return float(ordered[below]), float(ordered[len(array) - 1 - below])


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """Change over a run, from the Theil-Sen slope over the sample index: a machine's short hiccups hardly move it."""

    change_pct: float
    """From the first sample to the last, in % of the median."""
    ci_low_pct: float
    ci_high_pct: float

    @property
    def found(self) -> bool:
        """True if the slope's 95 % interval excludes 0 and the change is more than 3 % over the run."""
        return (self.ci_low_pct > 0 or self.ci_high_pct < 0) and abs(self.change_pct) > DRIFT_PCT


def drift(values: Sequence[float]) -> Drift | None:
    """Return the drift of a series; None for fewer than ``MIN_FOR_DRIFT`` samples, as their slope means nothing.

    The median slope of all pairs (Theil 1950; interval: Sen 1968; ``scipy.stats.theilslopes``). A longer
    series than 1000 is judged by the medians of 1000 stretches of it.
    """
    from scipy import stats

    array = np.asarray(values, dtype=np.float64)
    center = float(np.median(array)) if len(array) else 0.0
    if len(array) < MIN_FOR_DRIFT or center == 0:
        return None
    stretches = np.array_split(np.arange(len(array)), min(len(array), _DRIFT_POINTS))
    fit = stats.theilslopes(
        [np.median(array[stretch]) for stretch in stretches],
        [stretch.mean() for stretch in stretches],
        alpha=_CONFIDENCE,
    )
    scale = (len(array) - 1) / center * 100
    return Drift(
        change_pct=float(fit.slope) * scale,
        ci_low_pct=float(fit.low_slope) * scale,
        ci_high_pct=float(fit.high_slope) * scale,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class LineFit:
    """An ordinary least-squares line ``y = intercept + slope x`` with 95 % intervals (Student's t)."""

    count: int
    slope: float
    slope_low: float
    slope_high: float
    intercept: float
    intercept_low: float
    intercept_high: float
    r_squared: float
    """Share of the variance of y that the line explains."""
    x_min: float
    x_max: float
    """The line says nothing beyond them; the intercept is where it would meet 0."""


def line_fit(x: Sequence[float], y: Sequence[float]) -> LineFit | None:
    """Fit a line through the points; None for fewer than 5 points, or if x takes fewer than 3 values.

    Args:
        x: e.g. output tokens.
        y: of the same length, e.g. ms.
    """
    from scipy import stats

    if len(x) < MIN_POINTS or len(set(x)) < _MIN_DISTINCT:
        return None
    xs, ys = (np.asarray(values, dtype=np.float64) for values in (x, y))
    fit = stats.linregress(xs, ys)
    t = float(stats.t.ppf((1 + _CONFIDENCE) / 2, len(xs) - 2))
    slope, intercept = float(fit.slope), float(fit.intercept)
    # A level line has no errors to divide by: scipy returns NaN if they are 0.
    errors = (float(fit.stderr), float(fit.intercept_stderr)) if np.ptp(ys) else (0.0, 0.0)
    around_slope, around_intercept = (t * error for error in errors)
    return LineFit(
        count=len(xs),
        slope=slope,
        slope_low=slope - around_slope,
        slope_high=slope + around_slope,
        intercept=intercept,
        intercept_low=intercept - around_intercept,
        intercept_high=intercept + around_intercept,
        r_squared=float(fit.rvalue) ** 2 if np.ptp(ys) else 1.0,
        x_min=float(xs.min()),
        x_max=float(xs.max()),
    )


def why_no_line(x: Sequence[float], unit: str) -> str:
    """Return why ``line_fit`` finds no line for these x."""
    if not x:
        return "nothing measured"
    if len(set(x)) == 1:
        return f"all {len(x)} samples have {x[0]:g} {unit}: the cost of a token and the fixed cost cannot be separated"
    if len(x) < MIN_POINTS:
        return f"{len(x)} samples; at least {MIN_POINTS} are needed"
    return f"only {len(set(x))} different numbers of {unit}; at least {_MIN_DISTINCT} are needed"


def spread_pct(values: Sequence[float]) -> float | None:
    """Return the standard deviation of repeats in % of their mean; None for fewer than 3."""
    if len(values) < 3:
        return None
    array = np.asarray(values, dtype=np.float64)
    return float(array.std(ddof=1) / array.mean() * 100)


def outliers(values: Sequence[float]) -> int:
    """Count values over 14.826 median absolute deviations from the median, like hyperfine."""
    if len(values) < 3:
        return 0
    array = np.asarray(values, dtype=np.float64)
    deviations = np.abs(array - np.median(array))
    mad = float(np.median(deviations))
    return int((deviations > _OUTLIER_MADS * mad).sum()) if mad > 0 else 0
