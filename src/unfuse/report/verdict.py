"""VALID or INVALID, and why. Noise and drift warn; they never make a run invalid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from unfuse.report.claims import hooked_spans
from unfuse.report.statistics import (
    BALANCE_PCT,
    DRIFT_PCT,
    MIN_PAIRS,
    NOISE_PCT,
    SLOW_FIRST,
    UNRESOLVED_PCT,
    Balance,
    Drift,
)
from unfuse.runs.schema import Probes, SampleRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Whether a run's numbers may be used."""

    reasons: tuple[str, ...] = ()
    """Why not; empty for a valid run."""
    warnings: tuple[str, ...] = ()

    @property
    def valid(self) -> bool:
        """No reason against it."""
        return not self.reasons

    @property
    def word(self) -> str:
        """``VALID`` or ``INVALID``."""
        return "VALID" if self.valid else "INVALID"


def reasons_against(records: Sequence[SampleRecord], found: Balance, num_samples: int) -> tuple[str, ...]:
    """Everything that makes a run invalid; ``records`` without warm-up, of ``num_samples`` that were asked for."""
    ok = [record for record in records if record.status == "ok"]
    failed = [record for record in records if record.status == "failed"]
    reasons = []
    if not records:
        reasons.append("no samples")
    elif len(records) < num_samples:
        reasons.append(f"only {len(records)} of {num_samples} samples were run")
    if failed:
        reasons.append(f"{len(failed)} of {len(records)} samples failed: {_some(failed)}")
    if empty := [record for record in ok if not record.output_tokens]:
        reasons.append(f"{len(empty)} samples with zero output tokens: {_some(empty)}")
    if other := [record for record in ok if record.e2e_same_tokens is False]:
        reasons.append(f"{len(other)} samples whose unstaged run wrote other tokens: {_some(other)}")
    if ok and not found.enough:
        reasons.append(f"{found.pairs} pairs of staged and end-to-end runs; at least {MIN_PAIRS} are needed to balance")
    elif ok and not found.adds_up:
        reasons.append(
            f"stages do not add up: remainder {found.remainder_pct:+.2f} % of end to end "
            f"[{found.ci_low_pct:+.2f}, {found.ci_high_pct:+.2f}], beyond {BALANCE_PCT:g} %"
        )
    return tuple(reasons)


def protocol_reasons(protocol: str, probes: Probes, ok: Sequence[SampleRecord]) -> tuple[str, ...]:
    """What the way of measuring itself makes invalid; ``ok`` are the samples that were measured."""
    if protocol == "reencode":
        calls = probes.encoder_calls_after_encode
        seen = "not counted" if calls is None else f"vision modules were called {calls} times after Stage 3"
        return (f"protocol reencode is a control: its Stage 3 is thrown away and Stage 4 encodes again ({seen})",)
    if protocol == "decoupled" and probes.encoder_calls_after_encode:
        return (f"vision modules were called {probes.encoder_calls_after_encode} times after Stage 3",)
    blind = [record for record in ok if record.num_frames and not hooked_spans(record)]
    if protocol == "hooked" and blind:
        return (f"{len(blind)} samples on which no hook fired: {_some(blind)}",)
    return ()


def noise_warnings(spread: float | None, num_outliers: int) -> tuple[str, ...]:
    """About repeats of one sample."""
    warnings = []
    if spread is not None and spread > NOISE_PCT:
        warnings.append(f"noise: repeats of one sample spread by {spread:.1f} % (limit {NOISE_PCT:g} %)")
    if num_outliers:
        warnings.append(f"noise: {num_outliers} outliers among repeats of one sample")
    return tuple(warnings)


def balance_warnings(found: Balance) -> tuple[str, ...]:
    """About a balance that noise leaves open."""
    width = found.ci_high_pct - found.ci_low_pct
    if width <= UNRESOLVED_PCT:
        return ()
    return (f"noise: the balance is known to {width:.0f} % only; run again on a quieter machine",)


def first_warnings(totals_ms: Sequence[float]) -> tuple[str, ...]:
    """About a first sample that looks cold in spite of the warm-up."""
    if len(totals_ms) < 5 or totals_ms[0] <= SLOW_FIRST * median(totals_ms[1:]):
        return ()
    return (f"first sample {totals_ms[0] / median(totals_ms[1:]):.1f} x the median of the others: more warm-up?",)


def drift_warnings(name: str, found: Drift | None) -> tuple[str, ...]:
    """About one series over the run."""
    if found is None or not found.found:
        return ()
    return (
        f"drift: {name} changed by {found.change_pct:+.1f} % over the run "
        f"[{found.ci_low_pct:+.1f}, {found.ci_high_pct:+.1f}] (limit {DRIFT_PCT:g} %)",
    )


def _some(records: Sequence[SampleRecord]) -> str:
    names = ", ".join(record.sample_id for record in records[:5])
    return names + (", ..." if len(records) > 5 else "")
