"""What the page draws: for each chart its specification, what it shows in words, and its numbers as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unfuse.report.comparison import stage_ms
from unfuse.report.html import charts
from unfuse.report.html.looks import Look
from unfuse.report.reading import ReportRun
from unfuse.report.rows import fit_text, number
from unfuse.report.statistics import Distribution, Drift
from unfuse.report.summary import Summary, stage4_points
from unfuse.report.text import printable
from unfuse.runs.schema import PROTOCOL_STAGES

Shown = Sequence[tuple[Look, ReportRun]]
SUM = "sum of stages"


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """A table of text: the first column names the row."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One chart."""

    key: str
    """Of its specification on the page."""
    title: str
    spec: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """Charts that are read together."""

    key: str
    title: str
    findings: tuple[str, ...]
    """What they show, with numbers; where there is no chart, why."""
    panels: tuple[Panel, ...] = ()
    looks: tuple[Look, ...] = ()
    """For the legend; none where there is one run."""
    stages: tuple[str, ...] = ()
    """For the legend of stages."""
    table: Grid | None = None


def where_time_goes(shown: Shown, protocol: str, longest_ms: float) -> Figure:
    """Mean stages end to end, on the host's clock and on the device's.

    Args:
        shown: runs of one protocol.
        protocol: its name.
        longest_ms: where the axis ends, so that the protocols' bars can be compared.
    """
    bars: list[charts.Bar] = []
    rows: list[tuple[str, ...]] = []
    findings: list[str] = []
    for look, run in shown:
        s = _summary(run)
        host, device = _means(s.stages_host), _means(s.stages_device)
        for clock, means in (("host", host), ("device", device)):
            bars += _bars(f"{look.label}, {clock} clock", means)
        total = sum(host.values())
        if total:
            largest = max(host, key=lambda stage: host[stage])
            share = f"{words(largest)} takes {100 * host[largest] / total:.1f} % of {total:.2f} ms"
            findings.append(_said(look, shown, f"{share}{_busy(host, device)}."))
        for stage in s.stages_host:
            part = f"{100 * host[stage] / total:.1f} %" if total and stage in host else "-"
            rows.append((look.label, words(stage), number(host.get(stage)), part, number(device.get(stage))))
    if not any(_means(_summary(run).stages_device) for _, run in shown):
        findings.append("No device clock: on a CPU the host's clock is the only one.")
    description = "Stacked bars of the mean time of each stage. " + " ".join(findings)
    return Figure(
        key=f"time-{protocol}",
        title=_title("Stages of a sample, end to end", protocol),
        findings=tuple(findings),
        panels=(Panel(key=f"time-{protocol}", title="", spec=charts.stacked(bars, longest_ms, description)),),
        stages=tuple(dict.fromkeys(bar.stage for bar in bars)),
        table=Grid(
            caption="Mean time of each stage",
            columns=("run", "stage", "host ms", "share", "device ms"),
            rows=tuple(rows),
        ),
    )


def longest_ms(shown: Shown) -> float:
    """Of all mean sums of stages."""
    return max((found.mean for _, run in shown if (found := _summary(run).total)), default=0.0)


def spread(shown: Shown, protocol: str) -> Figure:
    """The distribution of each stage, and of their sum."""
    panels = []
    for stage in _rows_of(protocol):
        values = [(look, found) for look, run in shown if (found := _distribution(_summary(run), stage))]
        if values:
            each = "; ".join(f"{look.label} median {found.p50:.2f}, p99 {found.p99:.2f} ms" for look, found in values)
            spec = charts.strips(values, f"Every sample's {words(stage)} as a tick. {each}.")
            panels.append(Panel(key=f"spread-{protocol}-{stage}", title=words(stage), spec=spec))
    findings = []
    for look, run in shown:
        if (total := _summary(run).total) is not None:
            text = f"a sample takes {total.p50:.2f} ms in the middle, {total.p90:.2f} at p90, {total.max:.2f} at most."
            findings.append(_said(look, shown, text))
    return Figure(
        key=f"spread-{protocol}",
        title=_title("Distribution of each stage", protocol),
        findings=(*findings, "A tick is a sample; the diamond is the median, the bar its 95 % interval."),
        panels=tuple(panels),
        looks=_legend(shown),
        table=_spread_table(shown),
    )


def over_the_run(shown: Shown, protocol: str) -> Figure:
    """Time against the sample's index, with the line whose slope drift is judged by."""
    panels = []
    rows: list[tuple[str, ...]] = []
    found = []
    for stage in _rows_of(protocol):
        dots: list[charts.Dot] = []
        lines = []
        for look, run in shown:
            values = [(stage_ms(r, stage, protocol), r) for r in run.part.measured]
            dots += [
                charts.Dot(run=look.label, x=i, y=ms, sample_id=printable(r.sample_id))
                for i, (ms, r) in enumerate(values)
            ]
            drift = _summary(run).drifts.get("total" if stage == SUM else stage)
            rows.append((look.label, words(stage), *_drift_cells(drift)))
            if drift is not None:
                lines.append((look.label, *_drift_line(drift, [ms for ms, _ in values])))
                if drift.found:
                    found.append(f"{look.label}: {words(stage)} changed by {drift.change_pct:+.1f} % over the run")
        if dots:
            spec = charts.scatter(
                dots,
                lines,
                [look for look, _ in shown],
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
        title=_title("Time over the run", protocol),
        findings=tuple(findings),
        panels=tuple(panels),
        looks=_legend(shown),
        table=Grid(
            caption="Change over the run, in % of the mean",
            columns=("run", "stage", "change", "95 % interval", "drift"),
            rows=tuple(rows),
        ),
    )


def against_tokens(shown: Shown, protocol: str) -> Figure:
    """Stage 4 against output tokens: what a token costs, and what any answer costs."""
    findings, rows, lines = [], [], []
    dots: list[charts.Dot] = []
    for look, run in shown:
        s = _summary(run)
        if s.stage4_fit is None:
            findings.append(_said(look, shown, f"no line can be fitted: {s.stage4_fit_missing}."))
            rows.append((look.label, "-", "-", "-", "-", "-"))
        else:
            fit = s.stage4_fit
            findings.append(_said(look, shown, f"{fit_text(fit)}."))
            lines.append((look.label, *charts.line_between(fit)))
            rows.append(
                (
                    look.label,
                    f"{fit.slope:.3f}",
                    f"{fit.slope_low:.3f} .. {fit.slope_high:.3f}",
                    f"{fit.intercept:.2f}",
                    f"{fit.intercept_low:.2f} .. {fit.intercept_high:.2f}",
                    f"{fit.r_squared:.3f}",
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
        [look for look, _ in shown],
        x_title="output tokens",
        description="Stage 4 against output tokens. " + " ".join(findings),
        height=260,
    )
    return Figure(
        key=f"tokens-{protocol}",
        title=_title("Stage 4 against output tokens", protocol),
        findings=tuple(findings),
        panels=(Panel(key=f"tokens-{protocol}", title="", spec=spec),) if lines else (),
        looks=_legend(shown),
        table=Grid(
            caption="Line through Stage 4 over output tokens",
            columns=("run", "ms a token", "95 % interval", "fixed ms", "95 % interval", "R2"),
            rows=tuple(rows),
        )
        if lines
        else None,
    )


def under_the_roof(shown: Shown) -> Figure:
    """Where each stage stands under the roof of its device."""
    dots: list[charts.RoofDot] = []
    roofs, rows, findings, missing = [], [], [], []
    for look, run in shown:
        s = _summary(run)
        if not s.roofline or s.ceilings is None:
            missing.append(look.label)
            continue
        roofs.append((look.label, s.ceilings.bytes_per_s, s.ceilings.flops_per_s))
        best = max(s.roofline, key=lambda stage: s.roofline[stage].reached_pct)
        worst = min(s.roofline, key=lambda stage: s.roofline[stage].reached_pct)
        text = (
            f"{best} reaches {s.roofline[best].reached_pct:.0f} % of its roof, {worst} "
            f"{s.roofline[worst].reached_pct:.0f} %; ceilings measured here: {s.ceilings.bytes_per_s / 1e9:.0f} GB/s, "
            f"{s.ceilings.flops_per_s / 1e12:.3g} TFLOP/s."
        )
        findings.append(_said(look, shown, text))
        for stage, at in s.roofline.items():
            taken = at.device_ms or at.host_ms
            if at.flops and at.least_bytes:
                dots.append(
                    charts.RoofDot(
                        run=look.label,
                        stage=stage,
                        intensity=at.flops / at.least_bytes,
                        tflops=at.flops / taken / 1e9,
                        reached_pct=at.reached_pct,
                    )
                )
            rows.append(
                (
                    look.label,
                    stage,
                    f"{at.flops / 1e9:.4g}",
                    f"{at.least_bytes / 1e9:.4g}",
                    f"{at.floor_ms:.3f}",
                    at.bound,
                    f"{at.host_ms:.2f}",
                    number(at.device_ms),
                    f"{at.reached_pct:.1f} %",
                )
            )
    if missing:
        findings.append(_said_missing("Work and ceilings", missing, len(shown)))
    description = "Speed of each stage against its arithmetic intensity, under the roof. " + " ".join(findings)
    drawn = [look for look, _ in shown if any(look.label == dot.run for dot in dots)]
    return Figure(
        key="roofline",
        title="Position under the roofline, of one sample",
        findings=tuple(findings),
        panels=(Panel(key="roofline", title="", spec=charts.roof(dots, roofs, drawn, description)),) if dots else (),
        looks=tuple(drawn) if len(drawn) > 1 else (),
        table=Grid(
            caption="Least work of each stage, and how near it came to the roof",
            columns=("run", "stage", "GFLOP", "GB", "floor ms", "bound by", "host ms", "device ms", "reached"),
            rows=tuple(rows),
        )
        if rows
        else None,
    )


def memory(shown: Shown) -> Figure:
    """Peak and resident memory of each stage, of each model's first run that has it: protocols share weights."""
    rows: list[tuple[str, str, float, float]] = []
    findings = []
    drawn: dict[str, Look] = {}
    for look, run in shown:
        s = _summary(run)
        if not s.memory or run.part.model in drawn:
            continue
        drawn[run.part.model] = look
        rows += [
            (look.label, words(stage), m.peak_bytes / 2**30, m.resident_bytes / 2**30) for stage, m in s.memory.items()
        ]
        most = max(s.memory, key=lambda stage: s.memory[stage].peak_bytes)
        text = (
            f"most is held in {words(most)}, {s.memory[most].peak_bytes / 2**30:.2f} GiB, "
            f"counted by {s.memory_source or 'a source that is not recorded'}."
        )
        findings.append(_said(look, shown, text))
    missing = list(dict.fromkeys(run.part.model for _, run in shown if run.part.model not in drawn))
    if missing:
        findings.append(_said_missing("Memory", missing, len({run.part.model for _, run in shown})))
    looks = tuple(drawn.values())
    description = "Peak memory of each stage as a bar, what stays resident as a line on it. " + " ".join(findings)
    return Figure(
        key="memory",
        title="Memory of each stage",
        findings=(*findings, *(["The bar is the peak; the line on it is what stays resident."] if rows else [])),
        panels=(Panel(key="memory", title="", spec=charts.memory(rows, looks, description)),) if rows else (),
        looks=looks if len(looks) > 1 else (),
        table=Grid(
            caption="Memory of each stage, GiB",
            columns=("run", "stage", "peak", "resident"),
            rows=tuple((run, stage, f"{peak:.3f}", f"{resident:.3f}") for run, stage, peak, resident in rows),
        )
        if rows
        else None,
    )


def words(stage: str) -> str:
    """A stage's name as it is read."""
    return stage.replace("_", " ")


def _said(look: Look, shown: Shown, text: str) -> str:
    """A finding of one run among others, or of the only one."""
    return f"{look.label}: {text}" if len(shown) > 1 else text[0].upper() + text[1:]


def _said_missing(what: str, names: Sequence[str], of: int) -> str:
    some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{what} not recorded: {some}." if len(names) < of else f"{what} not recorded."


def _summary(run: ReportRun) -> Summary:
    assert run.part.summary is not None, "only runs with a summary are drawn"
    return run.part.summary


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


def _busy(host: Mapping[str, float], device: Mapping[str, float]) -> str:
    """How much of the host's time the device was busy, over the stages that it has a clock for."""
    both = [stage for stage in device if stage in host]
    waited = sum(host[stage] for stage in both)
    return f"; where the device works, it is busy {100 * sum(device[s] for s in both) / waited:.1f} %" if waited else ""


def _drift_line(drift: Drift, values: Sequence[float]) -> tuple[tuple[float, float], tuple[float, float]]:
    """The line that the drift is the slope of: least squares go through the mean of both."""
    last, mean = len(values) - 1, sum(values) / len(values)
    half = mean * drift.change_pct / 200
    return (0.0, mean - half), (float(last), mean + half)


def _drift_cells(drift: Drift | None) -> tuple[str, str, str]:
    if drift is None:
        return "-", "-", "not judged"
    interval = f"{drift.ci_low_pct:+.2f} .. {drift.ci_high_pct:+.2f} %"
    return f"{drift.change_pct:+.2f} %", interval, "yes" if drift.found else "no"


def _spread_table(shown: Shown) -> Grid:
    rows = []
    for look, run in shown:
        s = _summary(run)
        for stage, found in (*s.stages_host.items(), (SUM, s.total), ("end to end", s.e2e)):
            if found is None:
                rows.append((look.label, words(stage), *["-"] * 8))
                continue
            interval = "-" if found.ci_low is None else f"{found.ci_low:.2f} .. {found.ci_high:.2f}"
            numbers = (found.mean, found.std, found.min, found.p90, found.p99, found.max)
            rows.append((look.label, words(stage), f"{found.p50:.2f}", interval, *map(number, numbers)))
    columns = ("run", "stage", "median", "95 % interval", "mean", "std", "min", "p90", "p99", "max")
    return Grid(caption="Host ms of a sample", columns=columns, rows=tuple(rows))


def _legend(shown: Shown) -> tuple[Look, ...]:
    return tuple(look for look, _ in shown) if len(shown) > 1 else ()


def _title(what: str, protocol: str) -> str:
    return f"{what}: {protocol}"
