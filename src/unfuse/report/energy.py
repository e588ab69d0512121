"""Joules of each stage and of each token, with the bound on their error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from unfuse.records.schema import Energy, Probes


@dataclass(frozen=True, kw_only=True, slots=True)
class Joules:
    """An amount of energy."""

    joules: float
    resolution_joules: float
    """Bound on the error that the counter's steps cause, either way. How much repeats differ is not part of it."""
    above_idle_joules: float | None = None
    """Joules without those that the idle board would have drawn in that time."""

    def over(self, count: int) -> Joules:
        """Return one of ``count`` equal parts."""
        above = None if self.above_idle_joules is None else self.above_idle_joules / count
        return Joules(
            joules=self.joules / count, resolution_joules=self.resolution_joules / count, above_idle_joules=above
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EnergySummary:
    """Energy of one sample."""

    reason: str | None
    """Reason why energy was not measured."""
    source: str | None
    sample_id: str | None
    stages: Mapping[str, Joules]
    missing: Mapping[str, str]
    """Stages without a number, with the reason."""
    total: Joules | None
    """Energy of all stages; None if a stage has no energy."""
    decoded_token: Joules | None
    """Energy of ``decode`` over the tokens after the first, like ``tpot``."""
    output_token: Joules | None
    """Energy of all stages over all new tokens."""
    idle_watts: float | None
    counter_period_ms: float | None
    counter_step_mj: float | None


def energy_summary(probes: Probes) -> EnergySummary:
    """Return the energy that a run's probes hold."""
    energy = probes.energy or Energy(reason="not measured by the version of unfuse that made the run")
    stages = {
        name: Joules(
            joules=each.joules,
            resolution_joules=each.resolution_joules,
            above_idle_joules=each.joules - (energy.idle_watts or 0.0) * each.seconds / each.calls,
        )
        for name, each in energy.stages.items()
    }
    tokens = energy.output_tokens or 0
    total = _sum(stages) if stages and not energy.missing else None
    decode = stages.get("decode")
    return EnergySummary(
        reason=energy.reason,
        source=energy.source,
        sample_id=energy.sample_id,
        stages=stages,
        missing=energy.missing,
        total=total,
        decoded_token=decode.over(tokens - 1) if decode and tokens > 1 else None,
        output_token=total.over(tokens) if total and tokens else None,
        idle_watts=energy.idle_watts,
        counter_period_ms=energy.counter_period_ms,
        counter_step_mj=energy.counter_step_mj,
    )


def _sum(stages: Mapping[str, Joules]) -> Joules:
    return Joules(
        joules=sum(each.joules for each in stages.values()),
        resolution_joules=sum(each.resolution_joules for each in stages.values()),
        above_idle_joules=sum(each.above_idle_joules or 0.0 for each in stages.values()),
    )


def energy_rows(energy: EnergySummary) -> list[tuple[str, str, str, str]]:
    """Return name, joules, the bound on their error and joules above idle, formatted."""
    named: dict[str, Joules | None] = {
        **energy.stages,
        "sum of stages": energy.total,
        "a decoded token": energy.decoded_token,
        "an output token": energy.output_token,
    }
    rows = [(name, *_texts(value)) for name, value in named.items() if value is not None]
    return rows + [(name, "-", "-", reason) for name, reason in energy.missing.items()]


def energy_line(energy: EnergySummary) -> str:
    """Return the whole energy on one line."""
    if energy.reason is not None:
        return f"Energy: not measured ({energy.reason})."
    rows = energy_rows(energy)
    each = ", ".join(f"{name} {joules} ± {off}" for name, joules, off, _ in rows if joules != "-")
    without: dict[str, list[str]] = {}
    for name, reason in energy.missing.items():
        without.setdefault(reason, []).append(name)
    missing = "".join(f" No number for {', '.join(names)}: {reason}." for reason, names in without.items())
    title = "Energy of one sample in J, whole board, ± a bound on what the counter's steps hide"
    return f"{title}: {each or 'none'}; idle {energy.idle_watts or 0:.0f} W.{missing}"


def _texts(value: Joules) -> tuple[str, str, str]:
    # As many digits as the counter resolves, and one more.
    digits = 1
    while value.resolution_joules and 10**-digits > value.resolution_joules and digits < 6:
        digits += 1
    unit = 10.0**-digits
    # Rounded outward, so that the printed interval holds the whole of the bound.
    off = value.resolution_joules + abs(value.joules - round(value.joules, digits))
    above = "-" if value.above_idle_joules is None else f"{value.above_idle_joules:.{digits}f}"
    return f"{value.joules:.{digits}f}", f"{ceil(round(off / unit, 6)) * unit:.{digits}f}", above
