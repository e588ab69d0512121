"""Content and order of the page; the template has its layout.

Texts of files and models reach the template unchanged. The template escapes every text and removes control characters.
The content security policy of the page allows two scripts, by their hashes, and no requests.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final, get_args

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from unfuse.report.comparison import compare
from unfuse.report.comparison_tables import tables
from unfuse.report.html import device_figures, time_figures
from unfuse.report.html.bundle import vega_script
from unfuse.report.html.figure import Figure, LookedRuns
from unfuse.report.html.looks import Look, looks_of
from unfuse.report.html.samples import sample_list
from unfuse.report.reading import ReportRun
from unfuse.report.run_tables import check_table, fact_tables
from unfuse.report.run_text import headlines, method_lines
from unfuse.report.summary import FORMULAS, Summary
from unfuse.report.table import Kind, Table, text_columns
from unfuse.report.text import printable
from unfuse.report.verdict import CONTROL_PROTOCOL

_PACKAGE: Final = "unfuse.report.html"
_POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {scripts}"
_STAGE4: Final = ("decoupled", "hooked")
"""Protocols that know a Stage 4 which is not a control's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _RunView:
    """Texts and tables of one run on the page."""

    look: Look
    word: str
    good: bool
    summary: Summary | None
    error: str | None
    notes: tuple[str, ...]
    keys: tuple[tuple[str, str], ...]
    headlines: tuple[str, ...]
    methods: tuple[str, ...]
    checks: Table | None
    """Rules that the run itself checked."""
    verified: str
    """Weights and time of ``unfuse verify``, or why there is no verification."""
    verification: Table | None
    facts: tuple[Table, ...]


def report_html(runs: Sequence[ReportRun], *, command: Sequence[str] = ()) -> str:
    """Return runs as one self-contained page.

    Args:
        runs: at least one; the order is that of every list on the page.
        command: command that made all runs, if one command did.
    """
    looks = looks_of(runs)
    looked = list(zip(looks, runs, strict=True))
    sections = _sections([(look, run) for look, run in looked if run.part.measured])
    figures = [figure for found in sections.values() for figure in found]
    several = len(runs) > 1
    comparison = compare([run.part for run in runs])
    views = [_view(look, run) for look, run in looked]
    samples = sample_list(looked)
    vega, own = Markup(_script_safe(vega_script())), Markup(_text("page.js"))
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            title=_title(runs),
            several=several,
            headed=len(sections["time"]) > 1,
            valid=comparison.valid if several else views[0].word == "VALID",
            word=comparison.word if several else views[0].word,
            made=_made(runs),
            views=views,
            key_names=next(([name for name, _ in view.keys] for view in views if view.keys), []),
            tables=_by_kind(tables(comparison) if several else []),
            sections=sections,
            specs={panel.key: panel.spec for figure in figures for panel in figure.panels},
            samples=samples,
            pictures={key: strip.uri for key, strip in samples.pictures.items()},
            commands=_commands(runs, command),
            formulas=FORMULAS,
            style=Markup(_text("style.css")),
            vega=vega,
            script=own,
            policy=_POLICY.format(scripts=f"{_hash(vega)} {_hash(own)}"),
        )
    )


def _sections(measured: LookedRuns) -> dict[str, list[Figure]]:
    """Return the figures of each section of the page."""
    protocols = dict.fromkeys(run.part.protocol for _, run in measured)
    by_protocol = {name: [(look, run) for look, run in measured if run.part.protocol == name] for name in protocols}
    longest = time_figures.longest_ms(measured)
    return {
        "time": [time_figures.where_time_goes(each, name, longest) for name, each in by_protocol.items()],
        "spread": [time_figures.spread(each, name) for name, each in by_protocol.items()],
        "drift": [time_figures.over_the_run(each, name) for name, each in by_protocol.items()],
        "tokens": [time_figures.against_tokens(each, name) for name, each in by_protocol.items() if name in _STAGE4],
        "roofline": [device_figures.under_the_roof(measured)],
        "memory": [device_figures.memory(measured), device_figures.energy(measured)],
    }


def _by_kind(found: Sequence[Table]) -> dict[str, list[Table]]:
    return {kind: [table for table in found if table.kind == kind] for kind in get_args(Kind)}


def environment() -> Environment:
    """Return the templates of the page; they escape every text."""
    return Environment(
        loader=PackageLoader(_PACKAGE, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value,
    )


def _view(look: Look, run: ReportRun) -> _RunView:
    part, s = run.part, run.part.summary
    if part.manifest is None or s is None:
        return _RunView(
            look=look,
            word="CANNOT" if part.refused else "NOT RUN",
            good=part.refused,
            summary=None,
            error=part.error or "no reason recorded",
            notes=(),
            keys=(),
            headlines=(),
            methods=(),
            checks=None,
            verified="Not run, so not verified.",
            verification=None,
            facts=(),
        )
    verified, verification = _verified(run)
    control = part.protocol == CONTROL_PROTOCOL
    return _RunView(
        look=look,
        word=f"{s.verdict.word}{', as it must be' if control and not s.verdict.valid else ''}",
        good=s.verdict.valid != control,
        summary=s,
        error=None,
        notes=tuple(dict.fromkeys([*map(str, part.manifest.model.get("notes", ())), *s.notes])),
        keys=_keys(s),
        headlines=tuple(headlines(s)),
        methods=tuple(method_lines(s)),
        checks=check_table(s),
        verified=verified,
        verification=verification,
        facts=tuple(fact_tables(part.manifest)),
    )


def _keys(s: Summary) -> tuple[tuple[str, str], ...]:
    share = 100 * s.generate.mean / s.total.mean if s.generate and s.total else None
    found = (
        ("end to end", s.e2e.p50 if s.e2e else None, 1, "ms"),
        ("vision, S3", s.vision.p50 if s.vision else None, 2, "ms"),
        ("LLM, S4", s.generate.p50 if s.generate else None, 1, "ms"),
        ("S4 of the sum", share, 1, "%"),
        ("ttft", s.ttft.p50 if s.ttft else None, 1, "ms"),
        ("a token (tpot)", s.tpot.p50 if s.tpot else None, 2, "ms"),
        ("output tokens", s.output_tokens_per_s, 1, "/s"),
    )
    return tuple((name, "-" if value is None else f"{value:.{digits}f} {unit}") for name, value, digits, unit in found)


def _verified(run: ReportRun) -> tuple[str, Table | None]:
    """Return the rows of ``unfuse verify`` on these weights; rows of other weights are not shown."""
    record, manifest = run.verification, run.part.manifest
    assert manifest is not None
    if record is None:
        folder = run.folder.name if run.folder else "RUN"
        return f"Not verified: unfuse verify MODEL --output {folder} adds its ten checks here.", None
    names = ("fingerprint", "dtype", "engine")
    if other := [name for name in names if manifest.model.get(name) != getattr(record, name)]:
        return f"Not verified: the verification in this folder is of another {' and '.join(other)}.", None
    table = Table(
        title="unfuse verify",
        columns=("check", "result", "expected", "observed", "tolerance"),
        rows=tuple((r.name, r.status, r.expected, r.reason or r.observed, r.tolerance) for r in record.rows),
        kind="checks",
        align=text_columns(5),
    )
    return f"unfuse verify, {record.created}, on {record.device}, sample {record.sample_id}", table


def _commands(runs: Sequence[ReportRun], command: Sequence[str]) -> list[str]:
    """Return the commands that repeat the runs, each once."""
    own = [run.part.manifest.command for run in runs if run.part.manifest]
    return list(dict.fromkeys(shlex.join(words) for words in ([command] if command else own)))


def _title(runs: Sequence[ReportRun]) -> str:
    models = list(dict.fromkeys(run.part.model for run in runs))
    if len(models) == 1:
        protocols = ", ".join(dict.fromkeys(run.part.protocol for run in runs))
        return f"{models[0]}: {protocols}"
    return f"{len(models)} models side by side" if len(models) > 3 else ", ".join(models)


def _made(runs: Sequence[ReportRun]) -> str:
    manifests = [run.part.manifest for run in runs if run.part.manifest]
    if not manifests:
        return "nothing was measured"
    first = min(m.created for m in manifests)
    devices = dict.fromkeys(str(m.environment.get("device_name", "device not recorded")) for m in manifests)
    data = dict.fromkeys(
        f"{Path(str(m.dataset.get('path', 'data not recorded'))).name} ({m.dataset.get('num_samples', '?')} samples)"
        for m in manifests
    )
    return f"{first[:16].replace('T', ' ')} UTC · {', '.join(devices)} · {', '.join(data)}"


def _text(name: str) -> str:
    return (files(_PACKAGE) / name).read_text(encoding="utf-8")


def _script_safe(script: str) -> str:
    """Escape the end of a script and the start of a comment."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
