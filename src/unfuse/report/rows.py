"""The rows of the stage table, once for terminal and Markdown."""

from __future__ import annotations

from dataclasses import dataclass

from unfuse.report.energy import energy_line
from unfuse.report.isolation import isolation_line
from unfuse.report.quality import Share
from unfuse.report.statistics import Distribution, LineFit
from unfuse.report.summary import Summary
from unfuse.runs.schema import Profile


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRow:
    """One row, formatted."""

    name: str
    median: str
    interval: str
    mean: str
    p90: str
    p99: str
    device: str
    share: str


def stage_rows(summary: Summary) -> list[StageRow]:
    """The protocol's stages, then the 4-stage view where the protocol claims one, the sum and the whole."""
    rows = [
        _row(stage, host, summary.stages_device[stage], summary.shares_pct.get(stage))
        for stage, host in summary.stages_host.items()
    ]
    if summary.protocol == "hooked":
        rows.append(_row("hooks say S3", summary.vision, None, _share(summary.vision, summary)))
        rows.append(_row("the rest, S4", summary.generate, None, _share(summary.generate, summary)))
        rows.append(_row("S3 without sync", summary.unsynchronised_vision, None, None))
    if summary.protocol == "decoupled":
        rows.append(_row("generate (S4)", summary.generate, None, _share(summary.generate, summary)))
    rows.append(_row("sum of stages", summary.total, None, 100.0 if summary.total else None))
    rows.append(_row("end to end", summary.e2e, None, None))
    return rows


def _share(part: Distribution | None, summary: Summary) -> float | None:
    return 100 * part.mean / summary.total.mean if part and summary.total else None


def number(value: float | None, digits: int = 2) -> str:
    """A number, or a dash where nothing was measured."""
    return "-" if value is None else f"{value:.{digits}f}"


def _row(name: str, host: Distribution | None, device: Distribution | None, share: float | None) -> StageRow:
    interval = "-"
    if host and host.ci_low is not None and host.ci_high is not None:
        interval = f"{host.ci_low:.2f} .. {host.ci_high:.2f}"
    return StageRow(
        name=name,
        median=number(host.p50 if host else None),
        interval=interval,
        mean=number(host.mean if host else None),
        p90=number(host.p90 if host else None),
        p99=number(host.p99 if host else None),
        device=number(device.p50 if device else None),
        share="" if share is None else f"{share:.1f} %",
    )


def headlines(summary: Summary) -> list[str]:
    """What a reader should take away, a line each."""
    lines = []
    if summary.llm_to_vision is not None and summary.protocol != "reencode":
        lines.append(f"The LLM (Stage 4) takes {summary.llm_to_vision:.1f} x the time of the vision encoder (Stage 3).")
    if summary.ttft and summary.tpot:
        lines.append(f"ttft {summary.ttft.p50:.2f} ms, tpot {summary.tpot.p50:.3f} ms (medians).")
    elif summary.ttft:
        lines.append(f"ttft {summary.ttft.p50:.2f} ms (median); one token a sample, so no tpot.")
    if summary.stage4_fit and summary.protocol != "reencode":
        lines.append(f"Stage 4 against output tokens: {fit_text(summary.stage4_fit)}.")
    if summary.output_tokens and summary.text_tokens and summary.media_tokens:
        lines.append(
            f"Tokens a sample: {summary.output_tokens.mean:.1f} out, {summary.text_tokens.mean:.1f} text and "
            f"{summary.media_tokens.mean:.1f} media in."
        )
    if summary.quality:
        exact = f"{share_text(summary.quality.exact)} right in every attribute"
        each = ", ".join(f"{name} {s.right}/{s.asked}" for name, s in summary.quality.attributes.items())
        lines.append(f"Answers: {exact} ({each}).")
    if summary.memory:
        peaks = ", ".join(f"{name} {memory.peak_bytes / 2**30:.2f}" for name, memory in summary.memory.items())
        lines.append(f"Peak memory in GiB ({summary.memory_source}): {peaks}.")
    if summary.roofline and summary.ceilings:
        each = ", ".join(f"{name} {p.reached_pct:.0f} % ({p.bound})" for name, p in summary.roofline.items())
        most = f"{summary.ceilings.bytes_per_s / 1e9:.0f} GB/s, {summary.ceilings.flops_per_s / 1e12:.3g} TFLOP/s"
        lines.append(f"Roofline (measured here: {most}): {each}.")
    if summary.energy.reason is None:
        lines.append(energy_line(summary.energy))
    if summary.samples_per_s is not None and summary.output_tokens_per_s is not None:
        lines.append(
            f"Throughput: {summary.samples_per_s:.3f} samples/s, {summary.output_tokens_per_s:.1f} output tokens/s."
        )
    return lines


def fit_text(fit: LineFit) -> str:
    """Cost of a token and fixed cost, with their intervals."""
    return (
        f"{fit.slope:.3f} ms a token [{fit.slope_low:.3f}, {fit.slope_high:.3f}] and "
        f"{fit.intercept:.2f} ms fixed [{fit.intercept_low:.2f}, {fit.intercept_high:.2f}], R2 {fit.r_squared:.3f}"
    )


def share_text(share: Share) -> str:
    """How many were right, with the interval."""
    return f"{share.right} of {share.asked}, {share.pct:.1f} % [{share.low_pct:.1f}, {share.high_pct:.1f}]"


def method_lines(summary: Summary) -> list[str]:
    """How far the numbers can be trusted, a line each."""
    found = summary.balance
    lines = [
        f"Balance: remainder {found.remainder_pct:+.2f} % of end to end "
        f"[{found.ci_low_pct:+.2f}, {found.ci_high_pct:+.2f}] over {found.pairs} pairs (limit 1 %)."
    ]
    if summary.outside_stages_pct is not None:
        lines.append(f"Between the stages: {summary.outside_stages_pct:.3f} % of the staged run.")
    if summary.clock_overhead_pct is not None:
        lines.append(f"Clock: {summary.clock_overhead_pct:.3f} % of a run ({summary.clock_overhead_how}).")
    if summary.noise_spread_pct is not None:
        lines.append(f"Noise: repeats of one sample spread by {summary.noise_spread_pct:.1f} %.")
    if summary.warmup_total_ms:
        totals = ", ".join(f"{total:.1f}" for total in summary.warmup_total_ms[:6])
        more = ", ..." if len(summary.warmup_total_ms) > 6 else ""
        lines.append(f"Warm-up: {summary.num_warmups} repeats apart, sums {totals}{more} ms; in no statistic.")
    if summary.reused_prefix_tokens:
        lines.append(f"Reused prefix: {summary.reused_prefix_tokens} prompt tokens were not computed again.")
    if summary.energy.reason is not None:
        lines.append(energy_line(summary.energy))
    unseen = None if summary.isolation_unseen is None else dict(summary.isolation_unseen)
    lines.append(isolation_line(summary.disturbances, unseen))
    if summary.profile is not None:
        lines.append(_profile_line(summary.profile))
    return lines


def _profile_line(profile: Profile) -> str:
    if profile.reason is not None:
        return f"Profile: none ({profile.reason})."
    left_out = f", the {profile.num_left_out} shortest left out" if profile.num_left_out else ""
    return (
        f"Profile: profile.json, {profile.num_events} events{left_out}, {profile.num_kernels} on the device, of "
        f"{profile.output_tokens} tokens of {profile.sample_id}; in no statistic."
    )
