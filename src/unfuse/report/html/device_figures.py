"""Figures of the device: how near each stage came to its limits, and how much memory and energy the stages take."""

from __future__ import annotations

from unfuse.report.energy import energy_line
from unfuse.report.html import charts
from unfuse.report.html.figure import (
    Figure,
    LookedRuns,
    Panel,
    finding,
    missing_finding,
    stacked,
    summary_of,
    words,
)
from unfuse.report.html.looks import Look
from unfuse.report.reading import ReportRun
from unfuse.report.roofline import Position
from unfuse.report.run_tables import GIB, energy_table, memory_table, roofline_table
from unfuse.report.summary import Summary


def under_the_roof(runs: LookedRuns) -> Figure:
    """Draw the position of each stage under the roof of its device."""
    measured = [(look, s) for look, run in runs if (s := summary_of(run)).roofline and s.ceilings]
    findings = [finding(look, runs, _reached(s)) for look, s in measured]
    if missing := [look.label for look, run in runs if not summary_of(run).roofline or not summary_of(run).ceilings]:
        findings.append(missing_finding("Work and ceilings", missing, len(runs)))
    dots = [
        _dot(look, stage, at) for look, s in measured for stage, at in s.roofline.items() if at.flops and at.least_bytes
    ]
    roofs = [(look.label, s.ceilings.bytes_per_s, s.ceilings.flops_per_s) for look, s in measured if s.ceilings]
    drawn = [look for look, _ in runs if any(look.label == dot.run for dot in dots)]
    description = "Speed of each stage against its arithmetic intensity, under the roof. " + " ".join(findings)
    return Figure(
        key="roofline",
        title="Position under the roofline, of one sample",
        findings=tuple(findings),
        panels=(Panel(key="roofline", title="", spec=charts.roof(dots, roofs, drawn, description)),) if dots else (),
        looks=tuple(drawn) if len(drawn) > 1 else (),
        table=stacked("Least work of each stage, and how near it came to the roof", runs, roofline_table),
    )


def _reached(summary: Summary) -> str:
    """Return how near the best and the worst stage came to the roof."""
    assert summary.ceilings is not None
    reached = {stage: at.reached_pct for stage, at in summary.roofline.items()}
    best, worst = max(reached, key=lambda stage: reached[stage]), min(reached, key=lambda stage: reached[stage])
    return (
        f"{best} reaches {reached[best]:.0f} % of its roof, {worst} {reached[worst]:.0f} %; ceilings measured here: "
        f"{summary.ceilings.bytes_per_s / 1e9:.0f} GB/s, {summary.ceilings.flops_per_s / 1e12:.3g} TFLOP/s."
    )


def _dot(look: Look, stage: str, at: Position) -> charts.RoofDot:
    return charts.RoofDot(
        run=look.label,
        stage=stage,
        intensity=at.flops / at.least_bytes,
        tflops=at.flops / (at.device_ms or at.host_ms) / 1e9,
        reached_pct=at.reached_pct,
    )


def memory(runs: LookedRuns) -> Figure:
    """Draw peak and resident memory of each stage, of each model's first run that has it: protocols share weights."""
    first: dict[str, tuple[Look, ReportRun]] = {}
    for look, run in runs:
        if summary_of(run).memory:
            first.setdefault(run.part.model, (look, run))
    drawn = list(first.values())
    findings = [finding(look, runs, _most_memory(summary_of(run))) for look, run in drawn]
    models = list(dict.fromkeys(run.part.model for _, run in runs))
    if missing := [model for model in models if model not in first]:
        findings.append(missing_finding("Memory", missing, len(models)))
    bars = [
        (look.label, words(stage), m.peak_bytes / GIB, m.resident_bytes / GIB)
        for look, run in drawn
        for stage, m in summary_of(run).memory.items()
    ]
    looks = tuple(look for look, _ in drawn)
    description = "Peak memory of each stage as a bar, what stays resident as a line on it. " + " ".join(findings)
    return Figure(
        key="memory",
        title="Memory of each stage",
        findings=(*findings, *(["The bar is the peak; the line on it is what stays resident."] if bars else [])),
        panels=(Panel(key="memory", title="", spec=charts.memory(bars, looks, description)),) if bars else (),
        looks=looks if len(looks) > 1 else (),
        table=stacked("Memory of each stage, GiB", drawn, memory_table),
    )


def _most_memory(summary: Summary) -> str:
    most = max(summary.memory, key=lambda stage: summary.memory[stage].peak_bytes)
    source = summary.memory_source or "a source that is not recorded"
    return f"most is held in {words(most)}, {summary.memory[most].peak_bytes / GIB:.2f} GiB, counted by {source}."


def energy(runs: LookedRuns) -> Figure:
    """Return joules of each stage and token, or why there are none. The figure has no chart."""
    return Figure(
        key="energy",
        title="Energy of each stage and token, of one sample",
        findings=tuple(finding(look, runs, energy_line(summary_of(run).energy)) for look, run in runs),
        table=stacked("Energy of one sample, J, of the whole board", runs, energy_table),
    )
