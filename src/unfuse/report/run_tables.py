"""The tables of one run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from unfuse.records.schema import Manifest
from unfuse.report.energy import energy_rows
from unfuse.report.quality import Proportion
from unfuse.report.statistics import Distribution
from unfuse.report.summary import Summary
from unfuse.report.table import Table, text_columns
from unfuse.report.text import interval, number

GIB: Final = 2**30


def stage_table(summary: Summary) -> Table:
    """Return the protocol's stages, the 4-stage view if the protocol claims it, the sum and the whole."""
    rows = [
        _stage(stage, host, summary.stages_device[stage], summary.shares_pct.get(stage))
        for stage, host in summary.stages_host.items()
    ]
    if summary.protocol == "hooked":
        rows.append(_stage("hooks say S3", summary.vision, share=_share(summary.vision, summary)))
        rows.append(_stage("the rest, S4", summary.generate, share=_share(summary.generate, summary)))
        rows.append(_stage("S3 without sync", summary.unsynchronised_vision))
    if summary.protocol == "decoupled":
        rows.append(_stage("generate (S4)", summary.generate, share=_share(summary.generate, summary)))
    rows.append(_stage("sum of stages", summary.total, share=100.0 if summary.total else None))
    rows.append(_stage("end to end", summary.e2e))
    columns = ("stage", "median ms", "95 % interval", "mean ms", "p90 ms", "p99 ms", "device ms", "share")
    return Table(title="Where the time goes", columns=columns, rows=tuple(rows))


def _stage(
    name: str, host: Distribution | None, device: Distribution | None = None, share: float | None = None
) -> tuple[str, ...]:
    if host is None:
        numbers = ("-",) * 5
    else:
        ends = interval(host.ci_low, host.ci_high)
        numbers = (number(host.p50), ends, number(host.mean), number(host.p90), number(host.p99))
    return (name, *numbers, number(device.p50 if device else None), "" if share is None else f"{share:.1f} %")


def _share(part: Distribution | None, summary: Summary) -> float | None:
    return 100 * part.mean / summary.total.mean if part and summary.total else None


def span_table(summary: Summary) -> Table:
    """Return the medians of every sub-span."""

    def median(found: Distribution | None) -> str:
        return number(found.p50 if found else None, 3)

    rows = [(name, median(host), median(summary.spans_device.get(name))) for name, host in summary.spans_host.items()]
    columns = ("sub-span", "host ms", "device ms")
    return Table(title="Inside the stages (medians)", columns=columns, rows=tuple(rows))


def answer_table(summary: Summary) -> Table | None:
    """Return the accuracy of the answers, by attribute; None without reference answers."""
    if summary.quality is None:
        return None

    def row(name: str, found: Proportion) -> tuple[str, ...]:
        right = f"{found.right} of {found.asked}, {found.pct:.1f} %"
        return (name, right, f"{found.low_pct:.1f} .. {found.high_pct:.1f} %")

    found = {"every attribute of an answer": summary.quality.exact, **summary.quality.attributes}
    return Table(
        title="Answers against the reference answers",
        columns=("attribute", "right", "95 % interval"),
        rows=tuple(row(name, each) for name, each in found.items()),
    )


def memory_table(summary: Summary) -> Table | None:
    """Return peak and resident memory of each stage; None if memory was not counted."""
    if not summary.memory:
        return None
    rows = [
        (stage, number(memory.peak_bytes / GIB, 3), number(memory.resident_bytes / GIB, 3))
        for stage, memory in summary.memory.items()
    ]
    title = f"Memory, GiB ({summary.memory_source})"
    return Table(title=title, columns=("stage", "peak", "resident"), rows=tuple(rows))


def energy_table(summary: Summary) -> Table | None:
    """Return the energy of each stage and token; None if it was not measured."""
    energy = summary.energy
    if energy.reason is not None:
        return None
    note = (
        f"Idle: {number(energy.idle_watts, 1)} W, in every J. The counter moves every "
        f"{number(energy.counter_period_ms, 1)} ms, by {number(energy.counter_step_mj, 0)} mJ when idle, as measured."
    )
    return Table(
        title=f"Energy of one sample, J ({energy.source})",
        columns=("", "J", "off by at most, J", "J above idle"),
        rows=tuple(energy_rows(energy)),
        notes=(note,),
    )


def roofline_table(summary: Summary) -> Table | None:
    """Return the work of each stage and its distance to the roof; None if either was not measured."""
    ceilings = summary.ceilings
    if not summary.roofline or ceilings is None:
        return None
    rows = [
        (
            stage, f"{at.flops / 1e9:.3f}", f"{at.least_bytes / 1e9:.4f}", f"{at.floor_ms:.3f}", at.bound,
            f"{at.host_ms:.2f}", number(at.device_ms), f"{at.reached_pct:.1f} %",
        )
        for stage, at in summary.roofline.items()
    ]  # fmt: skip
    most = f"{ceilings.bytes_per_s / 1e9:.1f} GB/s, {ceilings.flops_per_s / 1e12:.4g} TFLOP/s"
    return Table(
        title=f"Roofline of one sample (ceilings measured here: {most})",
        columns=("stage", "GFLOP", "GB", "floor ms", "bound by", "host ms", "device ms", "reached"),
        rows=tuple(rows),
        align="lrrrlrrr",
    )


def check_table(summary: Summary) -> Table:
    """Return the rules that the run itself checked."""
    rows = [(row.rule, row.outcome, row.limit, row.value) for row in summary.verdict.listed]
    return Table(
        title="What the run itself checked",
        columns=("check", "result", "expected", "observed"),
        rows=tuple(rows),
        kind="checks",
        align=text_columns(4),
    )


def fact_tables(manifest: Manifest) -> list[Table]:
    """Return everything that the run depended on."""
    groups = {
        "Model": manifest.model,
        "Options": manifest.config,
        "Dataset": manifest.dataset,
        "Environment": manifest.environment,
        "Clock": manifest.clock,
    }
    return [
        Table(title=title, columns=("what", "value"), rows=tuple(_flat(facts, title)), align=text_columns(2))
        for title, facts in groups.items()
    ]


def _flat(facts: Mapping[str, Any], group: str, prefix: str = "") -> list[tuple[str, str]]:
    """Return nested facts as (dotted name, value)."""
    rows: list[tuple[str, str]] = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            rows += _flat(value, group, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", _fact(value, group)))
    return rows


def _fact(value: object, group: str) -> str:
    if value is None:
        return "none" if group == "Options" else "not recorded"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
