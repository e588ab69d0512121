"""Price of the split, in % of a whole call: a limit for the stages, and information where engines differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from unfuse.records.work_records import Price
from unfuse.report.statistics import MIN_PAIRS, order_interval

PRICE_PCT: Final = 2.0
"""The stages may take longer than a whole call by so much, beyond the interval."""
CALL_PCT: Final = 5.0
"""The engine's own call may take longer than the stages by so much: it prepares the prompt a second time."""
REFERENCE_ENGINE: Final = "eager"
"""The engine that runs the forward of Hugging Face's ``generate``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Excess:
    """Time that one call takes longer than another, in % of the other."""

    pct: float
    """Median over pairs."""
    ci_low_pct: float
    ci_high_pct: float
    """Interval of the median at 99 %, from order statistics."""

    @property
    def text(self) -> str:
        """The excess with its interval."""
        return f"{self.pct:+.1f} % [{self.ci_low_pct:+.1f}, {self.ci_high_pct:+.1f}]"


@dataclass(frozen=True, kw_only=True, slots=True)
class PriceSummary:
    """Times of the stages, of the engine's own call and of Hugging Face's ``generate``, against each other."""

    reason: str | None = None
    """Reason why there are none."""
    turns: int = 0
    stages_over_call: Excess | None = None
    stages_over_generate: Excess | None = None
    call_over_generate: Excess | None = None
    is_reference: bool = False
    """Whether the engine runs the forward of ``generate``, so that its price is judged."""

    @property
    def enough(self) -> bool:
        """True if there are enough turns to judge."""
        return self.turns >= MIN_PAIRS

    def faults(self) -> Iterator[str]:
        """Yield a sentence for each price that is too high."""
        over_call, stages, call = self.stages_over_call, self.stages_over_generate, self.call_over_generate
        if over_call is not None and over_call.ci_low_pct > PRICE_PCT:
            yield f"the stages take longer than the engine's own call: {over_call.text}, limit {PRICE_PCT:g} %"
        if over_call is not None and over_call.ci_high_pct < -CALL_PCT:
            yield f"the engine's own call takes longer than the stages: {over_call.text}, limit -{CALL_PCT:g} %"
        if not self.is_reference:
            return
        for name, excess in (("the stages take", stages), ("encode and generate take", call)):
            if excess is not None and excess.ci_low_pct > PRICE_PCT:
                yield f"{name} longer than Hugging Face's generate: {excess.text}, limit {PRICE_PCT:g} %"


def price_summary(price: Price | None, engine: str) -> PriceSummary:
    """Summarise the turns of a run.

    Args:
        price: as recorded; None in runs before schema 1.6, and under protocols without separate stages.
        engine: name of the engine of the run.
    """
    if price is None or price.reason is not None:
        return PriceSummary(reason="not recorded" if price is None else price.reason)
    stages, call, generate = (np.array(times) for times in (price.stages_ms, price.call_ms, price.generate_ms))
    return PriceSummary(
        turns=len(stages),
        stages_over_call=_excess(stages, call),
        stages_over_generate=_excess(stages, generate),
        call_over_generate=_excess(call, generate),
        is_reference=engine == REFERENCE_ENGINE,
    )


def price_line(price: PriceSummary) -> str:
    """Return the price on one line."""
    if price.reason is not None or price.stages_over_call is None or price.stages_over_generate is None:
        return f"Price of the split: {price.reason}."
    judged = f"limit {PRICE_PCT:g} %" if price.is_reference else "for information"
    return (
        f"Price of the split: the stages take {price.stages_over_call.text} beside the engine's own call (limit "
        f"{PRICE_PCT:g} %) and {price.stages_over_generate.text} beside Hugging Face's generate ({judged}), over "
        f"{price.turns} turns."
    )


def _excess(one: NDArray[np.float64], other: NDArray[np.float64]) -> Excess | None:
    if not len(one):
        return None
    found = 100 * (one / other - 1)
    low, high = order_interval(found)
    return Excess(pct=float(np.median(found)), ci_low_pct=low, ci_high_pct=high)
