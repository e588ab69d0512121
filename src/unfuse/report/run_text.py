"""The findings of one run and the doubts about them, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from unfuse.records.schema import Profile
from unfuse.report.energy import energy_line
from unfuse.report.isolation import isolation_line
from unfuse.report.price import price_line
from unfuse.report.quality import Proportion, Quality
from unfuse.report.speculation import speculation_line
from unfuse.report.statistics import BALANCE_PCT, LineFit
from unfuse.report.summary import FORMULAS, Summary
from unfuse.report.text import some
from unfuse.report.verdict import CONTROL_PROTOCOL

FORMULAS_LINE: Final = "Formulas: " + "; ".join(f"{name} = {text}" for name, text in FORMULAS.items())


def headlines(summary: Summary) -> list[str]:
    """Return the findings of a run, a line each."""
    lines = [*_stage4_lines(summary), *_answer_lines(summary), *_device_lines(summary)]
    if summary.samples_per_s is not None and summary.output_tokens_per_s is not None:
        lines.append(
            f"Throughput: {summary.samples_per_s:.3f} samples/s, {summary.output_tokens_per_s:.1f} output tokens/s."
        )
    return lines


def _stage4_lines(summary: Summary) -> Iterator[str]:
    control = summary.protocol == CONTROL_PROTOCOL
    if summary.llm_to_vision is not None and not control:
        yield f"The LLM (Stage 4) takes {summary.llm_to_vision:.1f} x the time of the vision encoder (Stage 3)."
    if summary.ttft and summary.tpot:
        yield f"ttft {summary.ttft.p50:.2f} ms, tpot {summary.tpot.p50:.3f} ms (medians)."
    elif summary.ttft:
        yield f"ttft {summary.ttft.p50:.2f} ms (median); one token a sample, so no tpot."
    if summary.stage4_fit and not control:
        yield f"Stage 4 against output tokens: {fit_text(summary.stage4_fit)}."


def _answer_lines(summary: Summary) -> Iterator[str]:
    if summary.output_tokens and summary.text_tokens and summary.media_tokens:
        yield (
            f"Tokens a sample: {summary.output_tokens.mean:.1f} out, {summary.text_tokens.mean:.1f} text and "
            f"{summary.media_tokens.mean:.1f} media in."
        )
    if summary.quality:
        exact = proportion_text(summary.quality.exact)
        yield f"Answers: {exact} right in every attribute ({attributes_text(summary.quality)})."


def _device_lines(summary: Summary) -> Iterator[str]:
    if summary.memory:
        peaks = ", ".join(f"{name} {memory.peak_bytes / 2**30:.2f}" for name, memory in summary.memory.items())
        yield f"Peak memory in GiB ({summary.memory_source}): {peaks}."
    if summary.roofline and summary.ceilings:
        each = ", ".join(f"{name} {p.reached_pct:.0f} % ({p.bound})" for name, p in summary.roofline.items())
        most = f"{summary.ceilings.bytes_per_s / 1e9:.0f} GB/s, {summary.ceilings.flops_per_s / 1e12:.3g} TFLOP/s"
        yield f"Roofline (measured here: {most}): {each}."
    if summary.energy.reason is None:
        yield energy_line(summary.energy)


def fit_text(fit: LineFit) -> str:
    """Return the cost of a token and the fixed cost, with their intervals."""
    return (
        f"{fit.slope:.3f} ms a token [{fit.slope_low:.3f}, {fit.slope_high:.3f}] and "
        f"{fit.intercept:.2f} ms fixed [{fit.intercept_low:.2f}, {fit.intercept_high:.2f}], R2 {fit.r_squared:.3f}"
    )


def proportion_text(found: Proportion) -> str:
    """Return how many were right, with the interval."""
    return f"{found.right} of {found.asked}, {found.pct:.1f} % [{found.low_pct:.1f}, {found.high_pct:.1f}]"


def attributes_text(quality: Quality) -> str:
    """Return how many were right, by attribute."""
    return ", ".join(f"{name} {found.right}/{found.asked}" for name, found in quality.attributes.items())


def method_lines(summary: Summary) -> list[str]:
    """Return how far the numbers can be trusted, a line each."""
    return [*_clock_lines(summary), *_condition_lines(summary)]


def _clock_lines(summary: Summary) -> Iterator[str]:
    found = summary.balance
    yield (
        f"Balance: remainder {found.remainder_pct:+.2f} % of end to end "
        f"[{found.ci_low_pct:+.2f}, {found.ci_high_pct:+.2f}] over {found.pairs} pairs (limit {BALANCE_PCT:g} %)."
    )
    if summary.protocol == "decoupled":
        yield price_line(summary.price)
    if summary.outside_stages_pct is not None:
        yield f"Between the stages: {summary.outside_stages_pct:.3f} % of the staged run."
    if summary.clock_overhead_pct is not None:
        yield f"Clock: {summary.clock_overhead_pct:.3f} % of a run ({summary.clock_overhead_how})."
    if summary.noise_spread_pct is not None:
        yield f"Noise: repeats of one sample spread by {summary.noise_spread_pct:.1f} %."


def _condition_lines(summary: Summary) -> Iterator[str]:
    if summary.warmup_total_ms:
        totals = some([f"{total:.1f}" for total in summary.warmup_total_ms], most=6)
        yield f"Warm-up: {summary.num_warmups} repeats, sums {totals} ms; in no statistic."
    if summary.reused_prefix_tokens:
        yield f"Reused prefix: {summary.reused_prefix_tokens} prompt tokens were not computed again."
    if summary.speculation is not None:
        yield speculation_line(summary.speculation)
    if summary.energy.reason is not None:
        yield energy_line(summary.energy)
    unseen = None if summary.isolation_unseen is None else dict(summary.isolation_unseen)
    yield isolation_line(summary.disturbances, unseen)
    if summary.profile is not None:
        yield _profile_line(summary.profile)


def _profile_line(profile: Profile) -> str:
    if profile.reason is not None:
        return f"Profile: none ({profile.reason})."
    left_out = f", the {profile.num_left_out} shortest left out" if profile.num_left_out else ""
    return (
        f"Profile: profile.json, {profile.num_events} events{left_out}, {profile.num_kernels} on the device, of "
        f"{profile.output_tokens} tokens of {profile.sample_id}; in no statistic."
    )
