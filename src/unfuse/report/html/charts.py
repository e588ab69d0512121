"""Charts as Vega-Lite specifications, from numbers that are computed elsewhere; this module computes positions only.

A chart is as wide as its panel, and has a description for screen readers. The legend is part of the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import altair as alt

from unfuse.records.schema import RECORD_STAGES
from unfuse.report.html.looks import Look, stage_colour, stage_ink
from unfuse.report.statistics import Distribution, LineFit

_INK, _MUTED, _GRID = "var(--ink)", "var(--muted)", "var(--line)"
_ROW: Final = 46
"""Pixels of a row: a label above a bar."""
_NUMBER: Final = ",.4~r"
_WORDS: Final = 0.09
"""Share of the longest row below which a bar has no room for a label."""
Spec = dict[str, Any]
Values = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One stage in a row of stages."""

    row: str
    stage: str
    start_ms: float
    end_ms: float
    share_pct: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Dot:
    """One sample of one run."""

    run: str
    x: float
    y: float
    sample_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RoofDot:
    """One stage of one run under its roof."""

    run: str
    stage: str
    intensity: float
    """FLOP per byte."""
    tflops: float
    """Reached, in 10^12 FLOP per second."""
    reached_pct: float


def stacked(bars: Sequence[Bar], longest_ms: float, description: str) -> Spec:
    """Draw rows of stages end to end, on an axis that ends at ``longest_ms``."""
    data = [
        {
            "row": bar.row,
            "stage": bar.stage,
            "name": bar.stage.replace("_", " "),
            "start": _short(bar.start_ms),
            "end": _short(bar.end_ms),
            "middle": _short((bar.start_ms + bar.end_ms) / 2),
            "ms": _short(bar.end_ms - bar.start_ms),
            "share": f"{bar.share_pct:.1f} %",
            "words": f"{bar.share_pct:.0f} %" if bar.end_ms - bar.start_ms >= _WORDS * longest_ms else "",
        }
        for bar in bars
    ]
    rows = list(dict.fromkeys(bar.row for bar in bars))
    stages = [stage for stage in RECORD_STAGES if any(bar.stage == stage for bar in bars)]
    y = alt.Y("row:N", sort=rows, axis=None)
    base = _chart("bars").encode(y=y)
    shape = base.mark_bar(height=20, yOffset=8, stroke="var(--page)", strokeWidth=1, aria=False).encode(
        x=alt.X(
            "start:Q",
            title="mean ms of a sample",
            scale=alt.Scale(domain=[0, _short(longest_ms)]),
            axis=alt.Axis(format=_NUMBER, tickCount=5),
        ),
        x2="end:Q",
        color=alt.Color("stage:N", legend=None, scale=alt.Scale(domain=stages, range=[*map(stage_colour, stages)])),
        tooltip=[
            alt.Tooltip("row:N", title="run"),
            alt.Tooltip("name:N", title="stage"),
            alt.Tooltip("ms:Q", format=_NUMBER, title="mean ms"),
            alt.Tooltip("share:N"),
        ],
    )
    words = base.mark_text(dy=8, fontSize=11, fontWeight=600, aria=False).encode(
        x="middle:Q",
        text="words:N",
        color=alt.Color("stage:N", legend=None, scale=alt.Scale(domain=stages, range=[*map(stage_ink, stages)])),
    )
    names = _row_names(rows)
    chart = alt.layer(shape, words, names).resolve_scale(color="independent")
    datasets = {"bars": data, "rows": _named(rows)}
    return _themed(chart, datasets, height=_ROW * len(rows), description=description)


def strips(values: Sequence[tuple[Look, Distribution]], description: str) -> Spec:
    """Draw every value of every run as a tick, with the median and its interval."""
    rows = [look.label for look, _ in values]
    named = len(rows) > 1
    y = alt.Y("row:N", sort=rows, axis=None)
    x = alt.X(
        "ms:Q",
        title="ms",
        scale=alt.Scale(zero=False, nice=True),
        axis=alt.Axis(format=_NUMBER, tickCount=4, grid=False),
    )
    colour = _colour([look for look, _ in values], "row")
    ticks = [{"row": look.label, "ms": _short(ms)} for look, found in values for ms in found.values]
    middles = [
        {
            "row": look.label,
            "ms": _short(found.p50),
            "low": _short(found.p50 if found.ci_low is None else found.ci_low),
            "high": _short(found.p50 if found.ci_high is None else found.ci_high),
            "p99": _short(found.p99),
            "n": found.count,
        }
        for look, found in values
    ]
    down = 8 if named else 0
    marks = _chart("ticks").mark_tick(size=18, thickness=1.5, opacity=0.6, yOffset=down, aria=False)
    middle = _chart("middles")
    chart = alt.layer(
        marks.encode(x=x, y=y, color=colour),
        middle.mark_rule(strokeWidth=3, color=_INK, yOffset=down, aria=False).encode(x="low:Q", x2="high:Q", y=y),
        middle.mark_point(
            shape="diamond", filled=True, size=70, color=_INK, stroke="var(--page)", opacity=1, yOffset=down, aria=False
        ).encode(
            x="ms:Q",
            y=y,
            tooltip=[
                alt.Tooltip("row:N", title="run"),
                alt.Tooltip("ms:Q", format=_NUMBER, title="median ms"),
                alt.Tooltip("low:Q", format=_NUMBER, title="95 % from"),
                alt.Tooltip("high:Q", format=_NUMBER, title="95 % to"),
                alt.Tooltip("p99:Q", format=_NUMBER, title="p99 ms"),
                alt.Tooltip("n:Q", title="samples"),
            ],
        ),
        *([_row_names(rows)] if named else []),
    )
    datasets = {"ticks": ticks, "middles": middles, "rows": _named(rows)}
    return _themed(chart, datasets, height=(_ROW if named else 34) * len(rows), description=description)


def scatter(
    dots: Sequence[Dot],
    lines: Sequence[tuple[str, tuple[float, float], tuple[float, float]]],
    looks: Sequence[Look],
    *,
    x_title: str,
    description: str,
    height: int = 170,
) -> Spec:
    """Draw samples as points, and straight lines through them.

    Args:
        dots: the samples.
        lines: label of a run and the line's two ends (x, y).
        looks: of the runs.
        x_title: of the axis.
        description: for screen readers.
        height: in pixels.
    """
    data = [{"run": d.run, "x": _short(d.x), "y": _short(d.y), "id": d.sample_id} for d in dots]
    ends = [{"run": run, "x": _short(x), "y": _short(y)} for run, *both in lines for x, y in both]
    colour = _colour(looks)
    shape = alt.Shape(
        "run:N",
        legend=None,
        scale=alt.Scale(domain=[look.label for look in looks], range=[look.shape for look in looks]),
    )
    x = alt.X("x:Q", title=x_title, scale=alt.Scale(zero=False), axis=alt.Axis(format=_NUMBER, tickCount=5, grid=False))
    y = alt.Y("y:Q", title="ms", scale=alt.Scale(zero=False), axis=alt.Axis(format=_NUMBER, tickCount=4))
    points = _chart("dots").mark_point(filled=True, size=34, opacity=0.7, aria=False)
    layers: list[alt.Chart] = [
        points.encode(
            x=x,
            y=y,
            color=colour,
            shape=shape,
            tooltip=[
                alt.Tooltip("run:N"),
                alt.Tooltip("id:N", title="sample"),
                alt.Tooltip("x:Q", format=_NUMBER, title=x_title),
                alt.Tooltip("y:Q", format=_NUMBER, title="ms"),
            ],
        )
    ]
    if ends:
        line = _chart("lines")
        # A pale line below keeps the coloured one apart from the points it runs through.
        layers.append(
            line.mark_line(strokeWidth=5, color="var(--page)", opacity=0.8, aria=False).encode(x=x, y=y, detail="run:N")
        )
        layers.append(line.mark_line(strokeWidth=2, aria=False).encode(x=x, y=y, color=colour))
    datasets = {"dots": data, "lines": ends}
    return _themed(alt.layer(*layers), datasets, height=height, description=description)


def roof(
    dots: Sequence[RoofDot], roofs: Sequence[tuple[str, float, float]], looks: Sequence[Look], description: str
) -> Spec:
    """Draw stages under the roof of their device; both axes are logarithmic.

    Args:
        dots: the stages.
        roofs: label of a run, its bytes a second and FLOP a second.
        looks: of the runs.
        description: for screen readers.
    """
    left = min(*(d.intensity for d in dots), *(flops / bytes_ for _, bytes_, flops in roofs)) / 3
    right = max(*(d.intensity for d in dots), *(flops / bytes_ for _, bytes_, flops in roofs)) * 3
    lines = [
        {"run": run, "x": _short(x), "y": _short(min(flops, x * bytes_) / 1e12)}
        for run, bytes_, flops in roofs
        for x in (left, flops / bytes_, right)
    ]
    data = [
        {
            "run": d.run,
            "stage": d.stage,
            "x": _short(d.intensity),
            "y": _short(d.tflops),
            "reached": f"{d.reached_pct:.1f} %",
        }
        for d in dots
    ]
    log = alt.Scale(type="log", nice=False)
    x = alt.X("x:Q", title="FLOP a byte", scale=log, axis=alt.Axis(format="~s", grid=False, tickCount=4))
    y = alt.Y("y:Q", title="TFLOP/s", scale=alt.Scale(type="log"), axis=alt.Axis(format="~r", tickCount=4))
    colour = _colour(looks)
    points = _chart("dots").encode(x=x, y=y)
    roofs_drawn = _chart("roofs").mark_line(strokeWidth=2, strokeDash=[6, 3], aria=False)
    chart = alt.layer(
        roofs_drawn.encode(x=x, y=y, color=colour),
        points.mark_point(filled=True, size=90, opacity=1, aria=False).encode(
            color=colour,
            shape=alt.Shape(
                "run:N",
                legend=None,
                scale=alt.Scale(domain=[look.label for look in looks], range=[look.shape for look in looks]),
            ),
            tooltip=[
                alt.Tooltip("run:N"),
                alt.Tooltip("stage:N"),
                alt.Tooltip("x:Q", format=_NUMBER, title="FLOP a byte"),
                alt.Tooltip("y:Q", format=_NUMBER, title="TFLOP/s"),
                alt.Tooltip("reached:N", title="of the roof"),
            ],
        ),
        points.mark_text(dy=-12, fontSize=12, color=_INK, aria=False).encode(text="stage:N"),
    )
    return _themed(chart, {"dots": data, "roofs": lines}, height=300, description=description)


def memory(rows: Sequence[tuple[str, str, float, float]], looks: Sequence[Look], description: str) -> Spec:
    """Draw the peak of each stage as a bar, with the resident memory marked on it.

    Args:
        rows: label of a run, stage, peak and resident in GiB.
        looks: of the runs.
        description: for screen readers.
    """
    labels = [look.label for look in looks if any(run == look.label for run, *_ in rows)]
    stages = list(dict.fromkeys(stage for _, stage, *_ in rows))
    data = [
        {"run": run, "stage": stage, "peak": _short(peak), "resident": _short(resident)}
        for run, stage, peak, resident in rows
    ]
    base = _chart("stages").encode(
        y=alt.Y("stage:N", sort=stages, title=None, axis=alt.Axis(ticks=False, domain=False)),
        yOffset=alt.YOffset("run:N", sort=labels),
        tooltip=[
            alt.Tooltip("run:N"),
            alt.Tooltip("stage:N"),
            alt.Tooltip("peak:Q", format=_NUMBER, title="peak GiB"),
            alt.Tooltip("resident:Q", format=_NUMBER, title="resident GiB"),
        ],
    )
    chart = alt.layer(
        base.mark_bar(aria=False).encode(
            x=alt.X("peak:Q", title="GiB", axis=alt.Axis(format=_NUMBER, tickCount=5)), color=_colour(looks)
        ),
        base.mark_tick(thickness=2, color=_INK, aria=False).encode(x="resident:Q"),
    )
    height = len(stages) * max(12 * len(labels) + 10, 26)
    return _themed(chart, {"stages": data}, height=height, description=description)


def line_between(fit: LineFit) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the two ends of a fitted line, over the range of measured x."""
    low, high = (fit.intercept + fit.slope * x for x in (fit.x_min, fit.x_max))
    return (fit.x_min, low), (fit.x_max, high)


def _chart(data: str) -> alt.Chart:
    """Return a chart of named values. ``_themed`` adds the values: checking each by the schema takes seconds."""
    return alt.Chart(alt.NamedData(name=data))


def _row_names(rows: Sequence[str]) -> alt.Chart:
    """Draw the name of each row above its bar, because a phone has no room beside it."""
    mark = _chart("rows").mark_text(align="left", baseline="bottom", dy=-5, fontSize=12, color=_INK, aria=False)
    names: alt.Chart = mark.encode(x=alt.value(0), y=alt.Y("row:N", sort=list(rows), axis=None), text="row:N")
    return names


def _named(rows: Sequence[str]) -> Values:
    return [{"row": row} for row in rows]


def _colour(looks: Sequence[Look], field: str = "run") -> alt.Color:
    scale = alt.Scale(domain=[look.label for look in looks], range=[look.colour for look in looks])
    return alt.Color(f"{field}:N", legend=None, scale=scale)


def _themed(
    chart: alt.LayerChart | alt.FacetChart, data: Mapping[str, Values], *, height: int, description: str
) -> Spec:
    axis = {
        "domainColor": _GRID,
        "gridColor": _GRID,
        "tickColor": _GRID,
        "labelColor": _MUTED,
        "titleColor": _MUTED,
        "titleFontWeight": "normal",
        "labelFontSize": 11,
        "titleFontSize": 11,
        "labelOverlap": "greedy",
    }
    done = chart.properties(
        width="container",
        height=height,
        description=description,
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
        background="transparent",
        padding=2,
    )
    # Checking against Vega-Lite's schema would take half of the time of a page; the tests check it.
    spec: Spec = done.to_dict(validate=False)
    spec["config"] = {"font": "system-ui, sans-serif", "view": {"stroke": None}, "axis": axis}
    spec["datasets"] = dict(data)
    return spec


def _short(value: float) -> float:
    """Return six digits: more than a screen shows, and a small file."""
    return float(f"{value:.6g}")
