"""The tables of a comparison, once for terminal and Markdown."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, Literal

from unfuse.report.claims import HOOKS
from unfuse.report.comparison import Comparison, Part, claims_of, stage_ms, stage_names
from unfuse.report.markdown import cell
from unfuse.report.rows import number, share_text
from unfuse.report.summary import FORMULAS, Summary
from unfuse.report.text import printable

_HEADS: Final = {
    "fused": "load, preprocess and the model's own generate in one piece; claims no Stage 3 of its own.",
    "hooked": "the same under hooks on tower and projector; Stage 3 is what they saw, Stage 4 the rest.",
    "decoupled": "every stage by itself, features encoded once and used.",
    "reencode": "INVALID control: Stage 3 is thrown away and Stage 4 encodes again.",
}


Kind = Literal["runs", "unfair", "stages", "ratios", "claims", "hooks", "answers", "memory"]


UNFAIR: Final = "What makes the comparison unfair: the models did not do equal work"
OTHER_ENGINE: Final = "What was compared: the same work on different engines"


@dataclass(frozen=True, slots=True)
class Table:
    """A heading, columns and rows of text."""

    kind: Kind
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(comparison: Comparison) -> list[Table]:
    """Every table, in the order in which a reader needs them."""
    parts = comparison.parts
    found = [_parts(parts)]
    if comparison.differences:
        models = list(dict.fromkeys(part.model for part in parts if part.measured))
        rows = [(d.what, *(d.values.get(model, "-") for model in models)) for d in comparison.differences]
        found.append(
            Table(
                "unfair",
                UNFAIR if rows != [row for row in rows if row[0] == "engine"] else OTHER_ENGINE,
                ("", *models),
                tuple(rows),
            )
        )
    for protocol in dict.fromkeys(part.protocol for part in parts):
        ran = [part for part in parts if part.protocol == protocol and part.measured]
        if len(ran) > 1:
            found.append(_side_by_side(protocol, ran))
            found.append(_ratio_table(protocol, comparison))
    for model in dict.fromkeys(part.model for part in parts):
        ran = [part for part in parts if part.model == model and part.measured]
        if len(ran) > 1:
            found.append(_claims(model, ran))
        if ran:
            cut = next((part for part in ran if part.protocol == "decoupled"), None)
            found += [_hooks(part, cut) for part in ran if part.protocol == "hooked"]
    found.append(_answers(parts))
    found.append(_memory(parts))
    return [table for table in found if table.rows]


def comparison_markdown(comparison: Comparison, command: Sequence[str]) -> str:
    """``report.md`` of a comparison."""
    lines = ["# Comparison", "", f"**{'VALID' if comparison.valid else 'INVALID'}** as a whole.", ""]
    for table in tables(comparison):
        lines += [f"## {cell(table.title)}", "", f"| {' | '.join(map(cell, table.columns))} |"]
        lines.append("|---|" + "--:|" * (len(table.columns) - 1))
        lines += [f"| {' | '.join(map(cell, row))} |" for row in table.rows] + [""]
    for line in remarks(comparison):
        lines.append(f"- {cell(line)}")
    formulas = "; ".join(f"{name} = {text}" for name, text in FORMULAS.items())
    lines += [
        "",
        f"Formulas: {formulas}.",
        "",
        "## How it was made",
        "",
        "```",
        printable(shlex.join(command)),
        "```",
        "",
    ]
    lines += ["Each run has a folder of its own beside this file, with raw values, environment and report.", ""]
    return "\n".join(lines)


def remarks(comparison: Comparison) -> list[str]:
    """Notes, warnings and reasons of every part, each once."""
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


def _parts(parts: Sequence[Part]) -> Table:
    rows = []
    for part in parts:
        if part.summary is None:
            word = "CANNOT" if part.refused else "NOT RUN"
            rows.append((part.model, part.protocol, word, "-", "-", "-", "-"))
            continue
        s = part.summary
        rows.append(
            (
                part.model,
                part.protocol,
                s.verdict.word,
                str(s.num_ok),
                str(s.num_failed),
                f"{s.balance.remainder_pct:+.2f} % [{s.balance.ci_low_pct:+.2f}, {s.balance.ci_high_pct:+.2f}]",
                number(s.noise_spread_pct, 1),
            )
        )
    return Table("runs", "Runs", ("model", "protocol", "verdict", "ok", "failed", "remainder", "noise %"), tuple(rows))


def _answers(parts: Sequence[Part]) -> Table:
    rows = []
    for part in parts:
        if part.summary and (found := part.summary.quality):
            each = ", ".join(f"{name} {s.right}/{s.asked}" for name, s in found.attributes.items())
            rows.append((part.model, part.protocol, share_text(found.exact), each))
    columns = ("model", "protocol", "right in every attribute [95 %]", "by attribute")
    return Table("answers", "Answers against the reference answers", columns, tuple(rows))


def _side_by_side(protocol: str, parts: Sequence[Part]) -> Table:
    rows = []
    for stage in stage_names(protocol):
        cells = []
        for part in parts:
            values = [stage_ms(record, stage, protocol) for record in part.measured]
            total = sum(record.total_host_ms for record in part.measured)
            device = part.summary.stages_device.get(stage) if part.summary else None
            dev = f" (device {device.p50:.2f})" if device else ""
            cells.append(f"{median(values):.2f}{dev}, {100 * sum(values) / total:.1f} %")
        rows.append((stage, *cells))
    for name, get in (("ttft", "ttft"), ("tpot", "tpot"), ("end to end", "e2e")):
        found = [getattr(part.summary, get) for part in parts]
        if any(found):
            rows.append((name, *(number(d.p50 if d else None, 3) for d in found)))
    for name, get in (
        ("text tokens", "text_tokens"),
        ("vision tokens", "media_tokens"),
        ("output tokens", "output_tokens"),
    ):
        rows.append((name, *(number(getattr(part.summary, get).mean, 1) for part in parts)))
    title = f"{protocol}: where each model's time goes (median ms, share of the sum) - {_HEADS[protocol]}"
    return Table("stages", title, ("stage", *(part.model for part in parts)), tuple(rows))


def _ratio_table(protocol: str, comparison: Comparison) -> Table:
    chosen = [each for each in comparison.ratios if each.protocol == protocol]
    rows = []
    for each in chosen:
        r = each.ratio
        interval = "-" if r.low is None else f"{r.low:.3f} .. {r.high:.3f}"
        rows.append(
            (each.stage, f"{each.model} / {each.reference}", f"{r.value:.3f}", interval, "yes" if r.paired else "no")
        )
    columns = ("stage", "ratio of medians", "value", "95 % interval", "same samples")
    return Table("ratios", f"{protocol}: ratios", columns, tuple(rows))


def _claims(model: str, parts: Sequence[Part]) -> Table:
    claims = {part.protocol: claims_of(part) for part in parts}
    names = ("S1 load", "S2 preprocess", "S3 vision", "S4 LLM", "S3 + S4 in one", "total")
    rows = [
        (name, *(number(median(c[name]) if name in c else None) for c in claims.values()))
        for name in names
        if any(name in c for c in claims.values())
    ]
    whole = [part.summary.e2e.p50 if part.summary and part.summary.e2e else None for part in parts]
    rows.append(("end to end, measured", *map(number, whole)))
    heads = [f"{part.protocol}{' (INVALID)' if part.protocol == 'reencode' else ''}" for part in parts]
    return Table("claims", f"{model}: what each protocol would have claimed (median ms)", ("", *heads), tuple(rows))


def _hooks(part: Part, cut: Part | None) -> Table:
    """Hooked times by the device's clock, without synchronisation, and as sub-spans of ``encode``.

    Nothing where there is no device clock: then there is nothing to wait for either.
    """
    rows: list[tuple[str, ...]] = []
    if part.summary:
        apart = cut.summary.spans_device if cut and cut.summary else {}
        for name, host in part.summary.spans_host.items():
            device, module = part.summary.spans_device.get(name), name.partition(".")[2]
            if host and device and name.startswith(HOOKS):
                own = apart.get(f"encode.{module}")
                rows.append(
                    (
                        module,
                        number(device.p50, 3),
                        number(own.p50 if own else None, 3),
                        f"{100 * (device.p50 / own.p50 - 1):+.1f} %" if own else "-",
                        number(host.p50, 3),
                        f"{100 * (host.p50 / device.p50 - 1):+.0f} %",
                    )
                )
    columns = ("module", "hook", "sub-span of encode", "apart", "hook without synchronisation", "wrong by")
    return Table("hooks", f"{part.model}: what hooks in the fused call saw (median ms)", columns, tuple(rows))


def _memory(parts: Sequence[Part]) -> Table:
    """Of each model's first run that has it: the protocols share weights and inputs."""
    first: dict[str, Summary] = {}
    for part in parts:
        if part.summary and part.summary.memory:
            first.setdefault(part.model, part.summary)
    stages = dict.fromkeys(stage for summary in first.values() for stage in summary.memory)
    rows = []
    for stage in stages:
        found = [summary.memory.get(stage) for summary in first.values()]
        cells = [f"{m.peak_bytes / 2**30:.2f} / {m.resident_bytes / 2**30:.2f}" if m else "-" for m in found]
        rows.append((stage, *cells))
    sources = ", ".join(dict.fromkeys(str(summary.memory_source) for summary in first.values()))
    return Table("memory", f"Memory of each stage, peak / resident in GiB ({sources})", ("stage", *first), tuple(rows))
