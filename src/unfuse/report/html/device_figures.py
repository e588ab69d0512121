"""Figures of the device: how near each stage came to what it can do, and what the stages take of its memory."""

from __future__ import annotations

from unfuse.report.energy import energy_line, energy_rows
from unfuse.report.html import charts
from unfuse.report.html.figure import Figure, Grid, Panel, Shown, said, said_missing, summary_of, words
from unfuse.report.html.looks import Look
from unfuse.report.rows import number


def under_the_roof(shown: Shown) -> Figure:
    """Where each stage stands under the roof of its device."""
    dots: list[charts.RoofDot] = []
    roofs, rows, findings, missing = [], [], [], []
    for look, run in shown:
        s = summary_of(run)
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
        findings.append(said(look, shown, text))
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
        findings.append(said_missing("Work and ceilings", missing, len(shown)))
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
        s = summary_of(run)
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
        findings.append(said(look, shown, text))
    missing = list(dict.fromkeys(run.part.model for _, run in shown if run.part.model not in drawn))
    if missing:
        findings.append(said_missing("Memory", missing, len({run.part.model for _, run in shown})))
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


def energy(shown: Shown) -> Figure:
    """Joules of each stage and token, or why there are none: numbers and how far each can be off, no chart."""
    found = [(look, summary_of(run).energy) for look, run in shown]
    return Figure(
        key="energy",
        title="Energy of each stage and token, of one sample",
        findings=tuple(said(look, shown, energy_line(each)) for look, each in found),
        table=Grid(
            caption="Energy of one sample, J, of the whole board",
            columns=("run", "what", "J", "can be off by", "above idle"),
            rows=tuple((look.label, words(row[0]), *row[1:]) for look, each in found for row in energy_rows(each)),
        ),
    )
