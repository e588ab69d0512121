"""Figures of time: mean, distribution and drift of each stage, and the cost of a token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Final

from unfuse.records.schema import PROTOCOL_STAGES
from unfuse.report.comparison import stage_ms
from unfuse.report.html import charts
from unfuse.report.html.figure import Figure, LookedRuns, Panel, finding, legend, summary_of, words
from unfuse.report.run_text import fit_text
from unfuse.report.statistics import Distribution, Drift
from unfuse.report.summary import Summary, stage4_points
from unfuse.report.table import Table
from unfuse.report.text import interval, number, printable

SUM: Final = "sum of stages"


def where_time_goes(runs: LookedRuns, protocol: str, longest_ms: float) -> Figure:
    """Draw mean stages end to end, on the host's clock and on the device's.

    Args:
        runs: runs of one protocol.
        protocol: its name.
        longest_ms: end of the axis, so that the protocols' bars can be compared.
    """
    bars: list[charts.Bar] = []
    rows: list[tuple[str, ...]] = []
    findings: list[str] = []
    for look, run in runs:
        s = summary_of(run)
        host, device = _means(s.stages_host), _means(s.stages_device)
        for clock, means in (("host", host), ("device", device)):
            bars += _bars(f"{look.label}, {clock} clock", means)
        total = sum(host.values())
        if total:
            longest = max(host, key=lambda stage: host[stage])
            share = f"{words(longest)} takes {100 * host[longest] / total:.1f} % of {total:.2f} ms"
            findings.append(finding(look, runs, f"{share}{_on_device(host, device)}."))
        for stage in s.stages_host:
            part = f"{100 * host[stage] / total:.1f} %" if total and stage in host else "-"
            rows.append((look.label, words(stage), number(host.get(stage)), part, number(device.get(stage))))
    if not any(_means(summary_of(run).stages_device) for _, run in runs):
        findings.append("No device clock: on a CPU the host's clock is the only one.")
    description = "Stacked bars of the mean time of each stage. " + " ".join(findings)
    return Figure(
        key=f"time-{protocol}",
        title=f"Stages of a sample, end to end: {protocol}",
        findings=tuple(findings),
        panels=(Panel(key=f"time-{protocol}", title="", spec=charts.stacked(bars, longest_ms, description)),),
        stages=tuple(dict.fromkeys(bar.stage for bar in bars)),
        table=Table(
            title="Mean time of each stage",
            columns=("run", "stage", "host ms", "share", "device ms"),
            rows=tuple(rows),
        ),
    )


def longest_ms(runs: LookedRuns) -> float:
    """Return the longest mean sum of stages."""
    return max((found.mean for _, run in runs if (found := summary_of(run).total)), default=0.0)


def spread(runs: LookedRuns, protocol: str) -> Figure:
    """Draw the distribution of each stage, and of their sum."""
    panels = []
    for stage in _rows_of(protocol):
        values = [(look, found) for look, run in runs if (found := _distribution(summary_of(run), stage))]
        if values:
            each = "; ".join(f"{look.label} median {found.p50:.2f}, p99 {found.p99:.2f} ms" for look, found in values)
            spec = charts.strips(values, f"Every sample's {words(stage)} as a tick. {each}.")
            panels.append(Panel(key=f"spread-{protocol}-{stage}", title=words(stage), spec=spec))
    findings = []
    for look, run in runs:
        if (total := summary_of(run).total) is not None:
            text = f"a sample takes {total.p50:.2f} ms at the median, {total.p90:.2f} at p90, {total.max:.2f} at most."
            findings.append(finding(look, runs, text))
    return Figure(
        key=f"spread-{protocol}",
        title=f"Distribution of each stage: {protocol}",
        findings=(*findings, "A tick is a sample; the diamond is the median, the bar its 95 % interval."),
        panels=tuple(panels),
        looks=legend(runs),
        table=_spread_table(runs),
    )


def over_the_run(runs: LookedRuns, protocol: str) -> Figure:
    """Draw time against the sample's index, with a line of the drift's slope."""
    panels = []
    rows: list[tuple[str, ...]] = []
    found = []
    for stage in _rows_of(protocol):
        dots: list[charts.Dot] = []
        lines = []
        for look, run in runs:
            values = [(stage_ms(r, stage, protocol), r) for r in run.part.measured]
            dots += [
                charts.Dot(run=look.label, x=i, y=ms, sample_id=printable(r.sample_id))
                for i, (ms, r) in enumerate(values)
            ]
            drift = summary_of(run).drifts.get("total" if stage == SUM else stage)
            rows.append((look.label, words(stage), *_drift_cells(drift)))
            if drift is not None:
                lines.append((look.label, *_drift_line(drift, [ms for ms, _ in values])))
                if drift.found:
                    found.append(f"{look.label}: {words(stage)} changed by {drift.change_pct:+.1f} % over the run")
        if dots:
            spec = charts.scatter(
                dots,
                lines,
                [look for look, _ in runs],
                x_title="sample index",
                description=f"{words(stage)} against the sample's index, with a line where drift can be judged.",
            )
            panels.append(Panel(key=f"drift-{protocol}-{stage}", title=words(stage), spec=spec))
    judged = any(row[2] != "-" for row in rows)
    if found:
        findings = [f"Drift: {'; '.join(found)}."]
    elif judged:
        findings = ["No stage drifts: no slope both differs from 0 and amounts to more than 3 % over the run."]
    else:
        findings = ["Drift cannot be judged: fewer than 10 samples were measured."]
    return Figure(
        key=f"drift-{protocol}",
        title=f"Time over the run: {protocol}",
        findings=tuple(findings),
        panels=tuple(panels),
        looks=legend(runs),
        table=Table(
            title="Change over the run, in % of the median",
            columns=("run", "stage", "change", "95 % interval", "drift"),
            rows=tuple(rows),
        ),
    )


def against_tokens(runs: LookedRuns, protocol: str) -> Figure:
    """Draw Stage 4 against output tokens: the cost of a token, and the fixed cost of an answer."""
    findings, rows, lines = [], [], []
    dots: list[charts.Dot] = []
    for look, run in runs:
        s = summary_of(run)
        if s.stage4_fit is None:
            findings.append(finding(look, runs, f"no line can be fitted: {s.stage4_fit_missing}."))
            rows.append((look.label, "-", "-", "-", "-", "-"))
        else:
            fit = s.stage4_fit
            findings.append(finding(look, runs, f"{fit_text(fit)}."))
            lines.append((look.label, *charts.line_between(fit)))
            rows.append(
                (
                    look.label,
                    number(fit.slope, 3),
                    interval(fit.slope_low, fit.slope_high, 3),
                    number(fit.intercept),
                    interval(fit.intercept_low, fit.intercept_high),
                    number(fit.r_squared, 3),
                )
            )
        dots += [
            charts.Dot(run=look.label, x=tokens, y=ms, sample_id=printable(record.sample_id))
            for record in run.part.measured
            for tokens, ms in stage4_points([record], protocol)
        ]
    spec = charts.scatter(
        dots,
        lines,
        [look for look, _ in runs],
        x_title="output tokens",
        description="Stage 4 against output tokens. " + " ".join(findings),
        height=260,
    )
    return Figure(
        key=f"tokens-{protocol}",
        title=f"Stage 4 against output tokens: {protocol}",
        findings=tuple(findings),
        panels=(Panel(key=f"tokens-{protocol}", title="", spec=spec),) if lines else (),
        looks=legend(runs),
        table=Table(
            title="Line through Stage 4 over output tokens",
            columns=("run", "ms a token", "95 % interval", "fixed ms", "95 % interval", "R2"),
            rows=tuple(rows),
        )
        if lines
        else None,
    )


def _rows_of(protocol: str) -> tuple[str, ...]:
    return (*PROTOCOL_STAGES[protocol], SUM)


def _distribution(summary: Summary, stage: str) -> Distribution | None:
    return summary.total if stage == SUM else summary.stages_host.get(stage)


def _means(stages: Mapping[str, Distribution | None]) -> dict[str, float]:
    return {stage: found.mean for stage, found in stages.items() if found is not None}


def _bars(row: str, means: Mapping[str, float]) -> Iterable[charts.Bar]:
    total, start = sum(means.values()), 0.0
    for stage, ms in means.items():
        yield charts.Bar(
            row=row, stage=stage, start_ms=start, end_ms=start + ms, share_pct=100 * ms / total if total else 0.0
        )
        start += ms


def _on_device(host: Mapping[str, float], device: Mapping[str, float]) -> str:
    """Compare the device's clock with the host's, over the stages that both have."""
    both = [stage for stage in device if stage in host]
    waited = sum(host[stage] for stage in both)
    if not waited:
        return ""
    share = 100 * sum(device[stage] for stage in both) / waited
    return f"; of the stages on the device, its own clock sees {share:.1f} % of the host's time"


def _drift_line(drift: Drift, values: Sequence[float]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return a line of the drift's slope, through the median of both coordinates like Theil and Sen."""
    last, center = len(values) - 1, median(values)
    half = center * drift.change_pct / 200
    return (0.0, center - half), (float(last), center + half)


def _drift_cells(drift: Drift | None) -> tuple[str, str, str]:
    if drift is None:
        return "-", "-", "not judged"
    interval = f"{drift.ci_low_pct:+.2f} .. {drift.ci_high_pct:+.2f} %"
    return f"{drift.change_pct:+.2f} %", interval, "yes" if drift.found else "no"


def _spread_table(runs: LookedRuns) -> Table:
    rows = []
    for look, run in runs:
        s = summary_of(run)
        for stage, found in (*s.stages_host.items(), (SUM, s.total), ("end to end", s.e2e)):
            if found is None:
                rows.append((look.label, words(stage), *["-"] * 8))
                continue
            ends = interval(found.ci_low, found.ci_high)
            numbers = (found.mean, found.std, found.min, found.p90, found.p99, found.max)
            rows.append((look.label, words(stage), number(found.p50), ends, *map(number, numbers)))
    columns = ("run", "stage", "median", "95 % interval", "mean", "std", "min", "p90", "p99", "max")
    return Table(title="Host ms of a sample", columns=columns, rows=tuple(rows))
