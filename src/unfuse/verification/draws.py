"""Reference of sampling in NumPy, and exact tests of drawn tokens against it.

Nothing here is shared with the engines: the probabilities, the noise and the choice are computed again, in float64.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

_BINS: Final = 8
_SHOWN_SHARE: Final = 0.05
"""A token of at least this probability is counted alone; the others are counted together."""
_MIN_GROUP: Final = 20
"""Draws from one distribution from which its tokens are counted."""
_NEAR_TIE: Final = 1e-3
"""Relative difference of two candidates that float32 may decide either way."""
_MASK64: Final = 2**64 - 1
_STEP: Final = 0x9E3779B97F4A7C15
_FACTORS: Final = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


class TokenDistribution:
    """TokenDistribution of a token: softmax at a temperature, cut to the nucleus. Many draws may share one."""

    def __init__(self, logits: NDArray[np.float64], temperature: float, top_p: float, error: float = 0.0):
        """Compute the distribution.

        Args:
            logits: ``[V]``, with masked tokens at minus infinity.
            temperature: above 0.
            top_p: probability of the nucleus.
            error: largest error of the logits: on another path the engine may compute other bits.
        """
        with np.errstate(over="ignore"):
            whole = np.exp((logits - logits.max()) / temperature)
        whole /= whole.sum()
        self.order = np.argsort(-whole, kind="stable")
        """Tokens from the likely to the unlikely."""
        ordered = whole[self.order]
        before = np.cumsum(ordered) - ordered
        self.has_clear_cut = top_p == 1 or float(np.abs(before - top_p).min()) > max(1e-4, 2 * error / temperature)
        """Whether the errors of the logits leave the nucleus as it is."""
        if top_p < 1:
            whole[self.order[before >= top_p]] = 0.0
        self.chances: NDArray[np.float64] = whole / whole.sum()
        """Probabilities ``[V]``; their sum is 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """One token that an engine has drawn."""

    token: int
    source: TokenDistribution
    seed: int
    position: int
    """Rotary position of the token."""
    before: tuple[int, ...] = ()
    """Tokens of the answer before it."""


def temperature_of(logits: NDArray[np.float64], peak: float, limits: tuple[float, float]) -> float:
    """Return the temperature at which the likeliest token has a probability.

    It is within limits, and away from 1, the temperature of an engine that ignores it.
    """
    low, high = np.log(limits[0]), np.log(limits[1])
    for _ in range(40):
        middle = (low + high) / 2
        with np.errstate(over="ignore"):
            found = 1 / np.exp((logits - logits.max()) / np.exp(middle)).sum()
        low, high = (middle, high) if found > peak else (low, middle)
    temperature = float(np.exp(low))
    return temperature if not 0.6 < temperature < 1.6 else (0.6 if temperature < 1 else 1.6)


def top_p_of(logits: NDArray[np.float64], temperature: float, wanted: float) -> float:
    """Return a top_p near a wanted one that keeps two tokens at least.

    It is in the middle of a token's probability, so that rounding cannot move the cut.
    """
    source = TokenDistribution(logits, temperature, 1.0)
    ordered = source.chances[source.order]
    ends = np.cumsum(ordered)
    at = max(1, int(np.searchsorted(ends, wanted)))
    return float(min(ends[at] - ordered[at] / 2, 1.0))


def noise(seed: int, position: int, count: int) -> NDArray[np.float64]:
    """Return the noise ``[count]`` of a token: exponential numbers from the counter-based form of SplitMix64."""
    key = _mixed(np.array([(_mixed_int(seed + _STEP) + (position + 1) * _STEP) & _MASK64], dtype=np.uint64))
    with np.errstate(over="ignore"):
        bits = _mixed(key + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_STEP)) >> np.uint64(41)
    found: NDArray[np.float64] = -np.log((bits.astype(np.float64) + 0.5) * 2.0**-23)
    return found


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        for shift, factor in zip((30, 27), _FACTORS, strict=True):
            values = (values ^ values >> np.uint64(shift)) * np.uint64(factor)
    return values ^ values >> np.uint64(31)


def _mixed_int(value: int) -> int:
    return int(_mixed(np.array([value & _MASK64], dtype=np.uint64))[0])


def is_defined_choice(draw: Draw) -> bool:
    """Return whether the token is the argmax of the probabilities over the noise of its seed and position."""
    scores = draw.source.chances / noise(draw.seed, draw.position, len(draw.source.chances))
    return bool(scores[draw.token] >= scores.max() * (1 - _NEAR_TIE))


def is_outside(draw: Draw) -> bool:
    """Return whether the token must never be drawn: it is outside of the nucleus, or masked."""
    return bool(draw.source.chances[draw.token] == 0)


def p_values(draws: Sequence[Draw]) -> Iterator[float]:
    """Yield exact two-sided p-values of counts that are binomial if each token is drawn from its distribution.

    Tokens from one distribution are counted by token. Tokens from any distribution are counted by their randomised
    probability integral transform (Rosenblatt 1952), which is uniform for all: once from the likely to the
    unlikely tokens, and once from the tokens that the answer has already. The second finds noise that two positions
    share.
    """
    groups: dict[int, list[Draw]] = defaultdict(list)
    for draw in draws:
        groups[id(draw.source)].append(draw)
    for group in groups.values():
        if len(group) >= _MIN_GROUP:
            yield from _by_token(group)
    yield from _by_bin(_transforms(draws, again_first=False))
    yield from _by_bin(_transforms([draw for draw in draws if draw.before], again_first=True))


def _by_token(group: Sequence[Draw]) -> Iterator[float]:
    chances = group[0].source.chances
    counts = Counter(draw.token for draw in group)
    shown = [int(token) for token in np.flatnonzero(chances >= _SHOWN_SHARE)]
    for token in shown:
        yield _binomial(counts[token], len(group), float(chances[token]))
    rest = 1.0 - float(chances[shown].sum())
    if shown and rest > 1e-9:
        yield _binomial(len(group) - sum(counts[token] for token in shown), len(group), rest)


def _transforms(draws: Sequence[Draw], *, again_first: bool) -> list[float]:
    random = np.random.default_rng(0)
    found = []
    for draw in draws:
        chances, order = draw.source.chances, draw.source.order
        if again_first:
            order = np.concatenate([np.unique(draw.before), order[~np.isin(order, draw.before)]])
        at = int(np.flatnonzero(order == draw.token)[0])
        found.append(float(chances[order[:at]].sum() + random.random() * chances[draw.token]))
    return found


def _by_bin(transforms: Sequence[float]) -> Iterator[float]:
    if len(transforms) < _MIN_GROUP:
        return
    counts = np.bincount([min(int(u * _BINS), _BINS - 1) for u in transforms], minlength=_BINS)
    for count in counts:
        yield _binomial(int(count), len(transforms), 1 / _BINS)


def _binomial(count: int, total: int, chance: float) -> float:
    from scipy import stats

    return float(stats.binomtest(count, total, min(max(chance, 0.0), 1.0)).pvalue)
