"""Accuracy of answers, for data sets that have reference answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from unfuse.samples.attributes import NAMES, score_answer


@dataclass(frozen=True, kw_only=True, slots=True)
class Proportion:
    """How many of the judged answers were right."""

    right: int
    asked: int
    low_pct: float
    """95 % interval (Clopper and Pearson 1934, exact)."""
    high_pct: float

    @property
    def pct(self) -> float:
        """Right answers, in %."""
        return 100 * self.right / self.asked


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """Accuracy of a run's answers against its reference answers."""

    answers: int
    """Samples whose reference claims any attribute."""
    exact: Proportion
    """Answers in which every attribute is right."""
    attributes: Mapping[str, Proportion]
    """By name of the attribute; see ``unfuse.samples.attributes``."""


def proportion(right: int, asked: int) -> Proportion:
    """Return a proportion with its interval; ``asked`` is at least 1."""
    from scipy import stats

    interval = stats.binomtest(right, asked).proportion_ci(0.95, "exact")
    return Proportion(right=right, asked=asked, low_pct=100 * interval.low, high_pct=100 * interval.high)


def quality(pairs: Iterable[tuple[str, str]]) -> Quality | None:
    """Judge answers; None if no reference claims an attribute.

    Args:
        pairs: reference and answer of each sample.
    """
    counts: dict[str, list[int]] = {name: [0, 0] for name in NAMES}
    answers = exact = 0
    for reference, answer in pairs:
        if judged := score_answer(reference, answer):
            answers += 1
            exact += all(judged.values())
            for (name, _), right in judged.items():
                counts[name][0] += right
                counts[name][1] += 1
    if not answers:
        return None
    found = {name: proportion(right, asked) for name, (right, asked) in counts.items() if asked}
    return Quality(answers=answers, exact=proportion(exact, answers), attributes=found)
