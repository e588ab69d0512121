"""Statistics against numbers that can be checked by hand, and against scipy."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from unfuse.report.statistics import (
    balance,
    distribution,
    drift,
    line_fit,
    median_interval,
    outliers,
    spread_pct,
    why_no_line,
)

VALUES = st.lists(st.floats(min_value=1e-3, max_value=1e6), min_size=1, max_size=30)


def test_distribution_by_hand() -> None:
    found = distribution([4.0, 1.0, 3.0, 2.0, 5.0], "ms")
    assert found is not None
    assert (found.unit, found.count, found.mean, found.min, found.max, found.p50) == (
        "ms",
        5,
        3.0,
        1.0,
        5.0,
        3.0,
    )
    assert found.std == pytest.approx(2.5**0.5)
    assert found.p90 == pytest.approx(4.6)
    assert found.p99 == pytest.approx(4.96)
    assert found.values == (4.0, 1.0, 3.0, 2.0, 5.0)


def test_one_value_has_no_spread_and_none_no_distribution() -> None:
    one = distribution([7.0], "ms")
    assert one is not None
    assert (one.p50, one.p99, one.std, one.ci_low, one.ci_high) == (7.0, 7.0, None, None, None)
    assert distribution([], "ms") is None


@given(VALUES)
def test_distribution_is_ordered(values: list[float]) -> None:
    found = distribution(values, "ms")
    assert found is not None
    assert found.min <= found.p50 <= found.p90 <= found.p99 <= found.max
    assert found.p50 == pytest.approx(statistics.median(values))
    if found.ci_low is not None and found.ci_high is not None:
        assert found.min <= found.ci_low <= found.ci_high <= found.max


def test_interval_is_scipys_percentile_bootstrap_and_repeatable() -> None:
    values = np.random.default_rng(1).normal(100, 5, 80)
    expected = stats.bootstrap(
        (values,), np.median, n_resamples=20_000, method="percentile", rng=np.random.default_rng(9)
    ).confidence_interval
    found = median_interval(values)
    assert found == pytest.approx((expected.low, expected.high), abs=0.3)
    assert found == median_interval(values)


def test_interval_covers_the_median_19_times_in_20() -> None:
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(100):
        low, high = median_interval(generator.lognormal(0, 0.3, 40)) or (0.0, 0.0)
        covered += low <= 1.0 <= high
    assert covered >= 88


def test_balance_by_hand() -> None:
    found = balance([(99.0, 100.0), (98.0, 100.0), (97.0, 100.0), (99.0, 100.0), (98.0, 100.0)])
    assert found.remainder_pct == pytest.approx(2.0)
    assert found.pairs == 5


@pytest.mark.parametrize("gap_pct", [-5.0, -1.5, 1.5, 5.0, 50.0])
def test_a_real_gap_fails_the_balance(gap_pct: float) -> None:
    noise = np.random.default_rng(3).normal(0, 0.2, 30)
    assert not balance([(100 - gap_pct + e, 100.0) for e in noise]).adds_up


def test_noise_alone_does_not_fail_the_balance() -> None:
    # 2 % on either side; far louder runs fail in up to 1 of 20, as any 95 % interval does.
    generator = np.random.default_rng(4)
    failed = sum(
        not balance([(100 + a, 100 + b) for a, b in generator.normal(0, 2, (20, 2))]).adds_up for _ in range(60)
    )
    assert failed == 0


@pytest.mark.parametrize("pairs", [0, 1, 4])
def test_too_few_pairs_do_not_add_up(pairs: int) -> None:
    found = balance([(100.0, 100.0)] * pairs)
    assert not found.enough
    assert not found.adds_up
    assert balance([(100.0, 100.0)] * 5).adds_up


def test_drift_by_hand() -> None:
    """The slopes of all pairs, sorted: the middle one; a value that stands out changes nothing."""
    values = [100.0 + i for i in range(11)]
    values[9] = 10_000.0
    slopes = [(values[j] - values[i]) / (j - i) for i in range(11) for j in range(i + 1, 11)]
    found = drift(values)
    assert found is not None
    assert found.change_pct == pytest.approx(100 * statistics.median(slopes) * 10 / 105)
    assert found.change_pct == pytest.approx(100 * 10 / 105)
    assert found.ci_low_pct <= found.change_pct <= found.ci_high_pct


@pytest.mark.parametrize("change", [0, 10, 23])
def test_a_busy_moment_neither_makes_nor_hides_a_drift(change: int) -> None:
    """For 5 % of a run everything takes twice as long."""
    seen = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        values = 100 + np.linspace(0, change, 200) + rng.normal(0, 2, 200)
        begin = rng.integers(0, 190)
        values[begin : begin + 10] *= 2
        found = drift(list(values))
        assert found is not None
        seen += found.found
    assert seen == (100 if change else 0)


def test_a_long_series_is_judged_by_stretches() -> None:
    rng = np.random.default_rng(0)
    found = drift(list(100 + np.linspace(0, 6, 20_001) + rng.normal(0, 1.5, 20_001)))
    assert found is not None
    assert found.found
    assert found.change_pct == pytest.approx(100 * 6 / 103, rel=0.02)


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_drift_of_6_percent_is_found(sign: int) -> None:
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(0, 1.5, 200)
        found = drift(list(100 + sign * np.linspace(0, 6, 200) + noise))
        assert found is not None
        assert found.found


def test_noise_alone_is_hardly_ever_drift() -> None:
    runs = [drift(list(np.random.default_rng(seed).normal(100, 3, 200))) for seed in range(200)]
    assert sum(run is not None and run.found for run in runs) <= 2


def test_a_significant_but_small_slope_is_no_drift() -> None:
    found = drift([100 + 2 * i / 199 for i in range(200)])
    assert found is not None
    assert found.ci_low_pct > 0
    assert not found.found


def test_a_large_but_uncertain_slope_is_no_drift() -> None:
    found = drift([100, 40, 170, 60, 150, 70, 180, 50, 130, 140])
    assert found is not None
    assert abs(found.change_pct) > 3
    assert not found.found


def test_a_slope_needs_samples() -> None:
    assert drift([1.0, 2.0]) is None


def test_outliers_are_hyperfines() -> None:
    # median 100, MAD 1: the limit is 14.826 away
    values = [98.0, 99.0, 99.0, 100.0, 101.0, 101.0, 102.0]
    assert outliers(values) == 0
    assert outliers([*values, 114.7, 85.3]) == 0
    assert outliers([*values, 116.0, 84.0]) == 2


def test_spread_by_hand() -> None:
    assert spread_pct([90.0, 100.0, 110.0]) == pytest.approx(10.0)
    assert spread_pct([90.0, 110.0]) is None


def test_line_by_hand() -> None:
    """Least squares through (1, 1), (2, 3), (3, 2), (4, 5), (5, 4): slope 0.8, intercept 0.6, R2 0.64."""
    found = line_fit([1, 2, 3, 4, 5], [1.0, 3.0, 2.0, 5.0, 4.0])
    assert found is not None
    assert (found.slope, found.intercept, found.r_squared) == pytest.approx((0.8, 0.6, 0.64))
    # Residuals -0.4, 0.8, -1, 1.2, -0.6 square to 3.6: the slope's error is sqrt(3.6 / 3 / 10); t(3) is 3.182446.
    assert found.slope_high - found.slope == pytest.approx(3.182446 * 0.12**0.5, rel=1e-6)
    assert found.intercept_high - found.intercept == pytest.approx(3.182446 * (1.2 * (1 / 5 + 9 / 10)) ** 0.5, rel=1e-6)
    assert (found.x_min, found.x_max, found.count) == (1, 5, 5)


def test_a_level_line_is_exact() -> None:
    found = line_fit([1, 2, 3, 4, 5], [7.0] * 5)
    assert found is not None
    assert (found.slope_low, found.slope, found.slope_high) == (0, 0, 0)
    assert (found.intercept_low, found.intercept_high) == (7, 7)


def test_the_line_finds_what_was_put_in() -> None:
    """The 95 % intervals hold the true cost of a token and the fixed cost in 900 to 990 of 1000 runs."""
    rng = np.random.default_rng(0)
    covered = [0, 0]
    for _ in range(1000):
        tokens = rng.integers(5, 90, 20).astype(float)
        found = line_fit(tokens.tolist(), (3.1 * tokens + 25 + rng.normal(0, 2, 20)).tolist())
        assert found is not None
        covered[0] += found.slope_low <= 3.1 <= found.slope_high
        covered[1] += found.intercept_low <= 25 <= found.intercept_high
    assert all(900 < count < 990 for count in covered), covered


@pytest.mark.parametrize(
    ("x", "words"),
    [
        ([], "nothing measured"),
        (
            [46.0] * 20,
            "all 20 samples have 46 output tokens: the cost of a token",
        ),
        ([1.0, 2.0, 3.0, 4.0], "4 samples; at least 5"),
        ([1.0, 2.0] * 10, "only 2 different numbers of output tokens"),
    ],
)
def test_no_line_where_none_can_be_had(x: list[float], words: str) -> None:
    assert line_fit(x, x) is None
    assert words in why_no_line(x, "output tokens")
