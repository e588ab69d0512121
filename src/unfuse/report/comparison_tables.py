"""The tables of a comparison, and the remarks on its parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Final

from unfuse.report.claims import HOOKS
from unfuse.report.comparison import Comparison, Part, claims_of, stage_ms, stage_names
from unfuse.report.run_tables import GIB
from unfuse.report.run_text import attributes_text, proportion_text
from unfuse.report.statistics import Distribution
from unfuse.report.summary import Summary
from unfuse.report.table import Table, text_columns
from unfuse.report.text import interval, number
from unfuse.report.verdict import CONTROL_PROTOCOL

_HEADS: Final = {
    "fused": "load, preprocess and the model's own generate in one piece; claims no Stage 3 of its own.",
    "hooked": "the same under hooks on tower and projector; Stage 3 is what they saw, Stage 4 the rest.",
    "decoupled": "every stage by itself, features encoded once and used.",
    "reencode": "INVALID control: Stage 3 is thrown away and Stage 4 encodes again.",
}
UNFAIR: Final = "Differences in work between the models: the ratios include these differences"
OTHER_ENGINE: Final = "What was compared: the same work on different engines"


def tables(comparison: Comparison) -> list[Table]:
    """Return every table that has rows, in the order of a reader's needs."""
    parts = comparison.parts
    found = [
        _runs(parts),
        _unfair(comparison),
        *_protocol_tables(comparison),
        *_model_tables(parts),
        _answers(parts),
        _memory(parts),
    ]
    return [table for table in found if table.rows]


def remarks(comparison: Comparison) -> list[str]:
    """Return notes, warnings and reasons of every part, each once."""
    lines = []
    for part in comparison.parts:
        if part.error:
            lines.append(f"{part.name} did not run: {part.error}")
        if part.manifest:
            lines += [f"{part.model}: {note}" for note in part.manifest.model.get("notes", ())]
        if part.summary:
            verdict = part.summary.verdict
            lines += [f"{part.model}: {note}" for note in part.summary.notes]
            lines += [f"{part.name} is INVALID: {reason}" for reason in verdict.reasons]
            lines += [f"{part.name}: warning: {warning}" for warning in verdict.warnings]
    return list(dict.fromkeys(lines))


def _protocol_tables(comparison: Comparison) -> Iterator[Table]:
    """Return the models side by side, under each protocol that several were measured under."""
    for protocol in dict.fromkeys(part.protocol for part in comparison.parts):
        ran = [part for part in comparison.parts if part.protocol == protocol and part.measured]
        if len(ran) > 1:
            yield _side_by_side(protocol, ran)
            yield _ratios(protocol, comparison)


def _model_tables(parts: Sequence[Part]) -> Iterator[Table]:
    """Return the protocols side by side, for each model that was measured."""
    for model in dict.fromkeys(part.model for part in parts):
        ran = [part for part in parts if part.model == model and part.measured]
        if len(ran) > 1:
            yield _claims(model, ran)
        decoupled = next((part for part in ran if part.protocol == "decoupled"), None)
        yield from (_hooks(part, decoupled) for part in ran if part.protocol == "hooked")


def _runs(parts: Sequence[Part]) -> Table:
    def row(part: Part) -> tuple[str, ...]:
        s = part.summary
        if s is None:
            return (part.model, part.protocol, "CANNOT" if part.refused else "NOT RUN", "-", "-", "-", "-")
        counts = (str(s.num_ok), str(s.num_failed))
        noise = number(s.noise_spread_pct, 1)
        return (part.model, part.protocol, s.verdict.word, *counts, s.balance.text, noise)

    columns = ("model", "protocol", "verdict", "ok", "failed", "remainder", "noise %")
    return Table(title="Runs", columns=columns, rows=tuple(map(row, parts)), kind="runs", align="lllrrrr")


def _unfair(comparison: Comparison) -> Table:
    models = list(dict.fromkeys(part.model for part in comparison.parts if part.measured))
    rows = tuple((d.what, *(d.values.get(model, "-") for model in models)) for d in comparison.differences)
    return Table(
        title=OTHER_ENGINE if [row[0] for row in rows] == ["engine"] else UNFAIR,
        columns=("", *models),
        rows=rows,
        kind="unfair",
        align=text_columns(1 + len(models)),
    )


def _answers(parts: Sequence[Part]) -> Table:
    rows = [
        (part.model, part.protocol, proportion_text(quality.exact), attributes_text(quality))
        for part in parts
        if part.summary and (quality := part.summary.quality)
    ]
    columns = ("model", "protocol", "right in every attribute [95 %]", "by attribute")
    title = "Answers against the reference answers"
    return Table(title=title, columns=columns, rows=tuple(rows), kind="answers", align=text_columns(4))


def _side_by_side(protocol: str, parts: Sequence[Part]) -> Table:
    summaries = [part.summary for part in parts if part.summary]
    rows = [(stage, *(_stage_cell(part, stage) for part in parts)) for stage in stage_names(protocol)]
    for name, times in (
        ("ttft", [s.ttft for s in summaries]),
        ("tpot", [s.tpot for s in summaries]),
        ("end to end", [s.e2e for s in summaries]),
    ):
        if any(times):
            rows.append((name, *(number(found.p50 if found else None, 3) for found in times)))
    for name, counts in (
        ("text tokens", [s.text_tokens for s in summaries]),
        ("vision tokens", [s.media_tokens for s in summaries]),
        ("output tokens", [s.output_tokens for s in summaries]),
    ):
        rows.append((name, *(number(found.mean if found else None, 1) for found in counts)))
    title = f"{protocol}: where each model's time goes (median ms, share of the sum) - {_HEADS[protocol]}"
    return Table(title=title, columns=("stage", *(part.model for part in parts)), rows=tuple(rows), kind="stages")


def _stage_cell(part: Part, stage: str) -> str:
    values = [stage_ms(record, stage, part.protocol) for record in part.measured]
    total = sum(record.total_host_ms for record in part.measured)
    device = part.summary.stages_device.get(stage) if part.summary else None
    on_device = f" (device {device.p50:.2f})" if device else ""
    return f"{median(values):.2f}{on_device}, {100 * sum(values) / total:.1f} %"


def _ratios(protocol: str, comparison: Comparison) -> Table:
    rows = []
    for each in comparison.ratios:
        if each.protocol == protocol:
            r = each.ratio
            names = (each.stage, f"{each.model} / {each.reference}")
            rows.append((*names, number(r.value, 3), interval(r.low, r.high, 3), "yes" if r.paired else "no"))
    columns = ("stage", "ratio of medians", "value", "95 % interval", "same samples")
    return Table(title=f"{protocol}: ratios", columns=columns, rows=tuple(rows), kind="ratios", align="llrrl")


def _claims(model: str, parts: Sequence[Part]) -> Table:
    claims = [claims_of(part) for part in parts]
    names = ("S1 load", "S2 preprocess", "S3 vision", "S4 LLM", "S3 + S4 in one", "total")
    rows = [
        (name, *(number(median(each[name]) if name in each else None) for each in claims))
        for name in names
        if any(name in each for each in claims)
    ]
    whole = [part.summary.e2e.p50 if part.summary and part.summary.e2e else None for part in parts]
    rows.append(("end to end, measured", *map(number, whole)))
    heads = [f"{part.protocol}{' (INVALID)' if part.protocol == CONTROL_PROTOCOL else ''}" for part in parts]
    title = f"{model}: what each protocol would have claimed (median ms)"
    return Table(title=title, columns=("", *heads), rows=tuple(rows), kind="claims")


def _hooks(part: Part, decoupled: Part | None) -> Table:
    """Return hooked times by the device's clock, without synchronisation, and as sub-spans of ``encode``.

    The table is empty if there is no device clock: without a device clock there is nothing to wait for.
    """
    rows: list[tuple[str, ...]] = []
    spans = decoupled.summary.spans_device if decoupled and decoupled.summary else {}
    for name, host in part.summary.spans_host.items() if part.summary else ():
        device, module = part.summary.spans_device.get(name) if part.summary else None, name.partition(".")[2]
        if host and device and name.startswith(HOOKS):
            own = spans.get(f"encode.{module}")
            rows.append((module, *_hook_numbers(host, device, own)))
    columns = ("module", "hook", "sub-span of encode", "difference", "hook without synchronisation", "wrong by")
    title = f"{part.model}: what hooks in the fused call saw (median ms)"
    return Table(title=title, columns=columns, rows=tuple(rows), kind="hooks")


def _hook_numbers(host: Distribution, device: Distribution, own: Distribution | None) -> tuple[str, ...]:
    difference = f"{100 * (device.p50 / own.p50 - 1):+.1f} %" if own else "-"
    error = f"{100 * (host.p50 / device.p50 - 1):+.0f} %"
    return (number(device.p50, 3), number(own.p50 if own else None, 3), difference, number(host.p50, 3), error)


def _memory(parts: Sequence[Part]) -> Table:
    """Return memory of each model's first run that has it: the protocols share weights and inputs."""
    first: dict[str, Summary] = {}
    for part in parts:
        if part.summary and part.summary.memory:
            first.setdefault(part.model, part.summary)
    stages = dict.fromkeys(stage for summary in first.values() for stage in summary.memory)
    rows = []
    for stage in stages:
        found = [summary.memory.get(stage) for summary in first.values()]
        cells = [f"{m.peak_bytes / GIB:.2f} / {m.resident_bytes / GIB:.2f}" if m else "-" for m in found]
        rows.append((stage, *cells))
    sources = ", ".join(dict.fromkeys(str(summary.memory_source) for summary in first.values()))
    title = f"Memory of each stage, peak / resident in GiB ({sources})"
    return Table(title=title, columns=("stage", *first), rows=tuple(rows), kind="memory")
