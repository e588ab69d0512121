"""``report.md``: the summary with what it takes to repeat and to doubt it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from unfuse.report.energy import energy_rows
from unfuse.report.rows import headlines, method_lines, number, stage_rows
from unfuse.report.summary import FORMULAS, Summary
from unfuse.report.text import printable
from unfuse.runs.schema import Manifest


def report_markdown(manifest: Manifest, summary: Summary) -> str:
    """The report of one run."""
    model = manifest.model
    lines = [
        f"# {cell(model.get('name'))}: {manifest.protocol}",
        "",
        f"**{summary.verdict.word}** - {summary.num_ok} samples measured, {summary.num_failed} failed, "
        f"{summary.num_warmups} warm-up repeats apart.",
        "",
        *[f"- because: {cell(reason)}" for reason in summary.verdict.reasons],
        *[f"- warning: {cell(warning)}" for warning in summary.verdict.warnings],
        *[f"- note: {cell(note)}" for note in (*model.get("notes", ()), *summary.notes)],
        "",
        "## Where the time goes",
        "",
        "| stage | median ms | 95 % interval | mean ms | p90 ms | p99 ms | device ms | share |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in stage_rows(summary):
        cells = (row.name, row.median, row.interval, row.mean, row.p90, row.p99, row.device, row.share)
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        *(f"{line}  " for line in headlines(summary)),
        "",
        "### Inside the stages (medians)",
        "",
    ]
    lines += ["| sub-span | host ms | device ms |", "|---|--:|--:|"]
    for name, host in summary.spans_host.items():
        device = summary.spans_device.get(name)
        lines.append(
            f"| {name} | {number(host.p50 if host else None, 3)} | {number(device.p50 if device else None, 3)} |"
        )
    if summary.quality:
        lines += ["", "### Answers against the reference answers", "", "| attribute | right | 95 % interval |"]
        lines += ["|---|--:|--:|"]
        for name, share in {
            "every attribute of an answer": summary.quality.exact,
            **summary.quality.attributes,
        }.items():
            right = f"{share.right} of {share.asked}, {share.pct:.1f} %"
            lines.append(f"| {name} | {right} | {share.low_pct:.1f} .. {share.high_pct:.1f} % |")
    if summary.memory:
        lines += ["", f"### Memory, GiB ({summary.memory_source})", "", "| stage | peak | resident |", "|---|--:|--:|"]
        for stage, memory in summary.memory.items():
            peak, resident = (bytes_ / 2**30 for bytes_ in (memory.peak_bytes, memory.resident_bytes))
            lines.append(f"| {stage} | {peak:.3f} | {resident:.3f} |")
    if summary.energy.reason is None:
        lines += _energy(summary)
    if summary.roofline and summary.ceilings:
        most = f"{summary.ceilings.bytes_per_s / 1e9:.1f} GB/s, {summary.ceilings.flops_per_s / 1e12:.4g} TFLOP/s"
        lines += ["", f"### Roofline of one sample (ceilings measured here: {most})", ""]
        lines += ["| stage | GFLOP | GB | floor ms | bound by | host ms | device ms | reached |"]
        lines += ["|---|--:|--:|--:|---|--:|--:|--:|"]
        for stage, at in summary.roofline.items():
            lines.append(
                f"| {stage} | {at.flops / 1e9:.3f} | {at.least_bytes / 1e9:.4f} | {at.floor_ms:.3f} | {at.bound} | "
                f"{at.host_ms:.2f} | {number(at.device_ms)} | {at.reached_pct:.1f} % |"
            )
    lines += ["", "## How far to trust it", "", *[f"- {line}" for line in method_lines(summary)], ""]
    lines += ["Formulas: " + "; ".join(f"{name} = {text}" for name, text in FORMULAS.items()) + ".", ""]
    if summary.failures:
        lines += ["## Failed samples", ""]
        lines += [f"- {cell(f.sample_id)}: {cell(f.error)}" for f in summary.failures] + [""]
    lines += [
        "## How it was made",
        "",
        "```",
        printable(shlex.join(manifest.command)).replace("```", "` ` `"),
        "```",
        "",
    ]
    lines += _facts("Model", model) + _facts("Options", manifest.config) + _facts("Dataset", manifest.dataset)
    lines += _facts("Environment", manifest.environment)
    return "\n".join(lines)


def _energy(summary: Summary) -> list[str]:
    energy = summary.energy
    lines = ["", f"### Energy of one sample, J ({cell(energy.source)})", ""]
    lines += ["| | J | off by at most, J | J above idle |", "|---|--:|--:|--:|"]
    lines += [f"| {' | '.join(map(cell, row))} |" for row in energy_rows(energy)]
    step = (
        f"Idle: {number(energy.idle_watts, 1)} W, in every J. The counter moves every "
        f"{number(energy.counter_period_ms, 1)} ms, by {number(energy.counter_step_mj, 0)} mJ when idle, as measured."
    )
    return [*lines, "", step]


def _facts(title: str, facts: Mapping[str, Any]) -> list[str]:
    rows = [f"| {cell(name)} | {cell(value)} |" for name, value in flat(facts)]
    return [f"### {title}", "", "| | |", "|---|---|", *rows, ""]


def flat(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested facts as (dotted name, value)."""
    rows: list[tuple[str, Any]] = []
    for name, value in facts.items():
        rows += flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return rows


def cell(value: object) -> str:
    """A value inside a Markdown table."""
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    for mark in "\\|`*_<[":
        text = text.replace(mark, f"\\{mark}") if mark != "<" else text.replace("<", "&lt;")
    return printable(text)
