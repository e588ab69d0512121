"""The page: what is on it and in which order; the template says how it looks.

Texts of files and models reach the template as they are. It escapes every one and takes out control characters, and
the page's own policy lets no script run but the two that are named there by their hash, and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, get_args

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from unfuse.report.checks import RunCheck, run_checks
from unfuse.report.comparison import compare
from unfuse.report.comparison_tables import Kind, Table, tables
from unfuse.report.html import device_figures, time_figures
from unfuse.report.html.bundle import vega_script
from unfuse.report.html.looks import Look, looks_of
from unfuse.report.html.samples import sample_table
from unfuse.report.markdown import flat
from unfuse.report.reading import ReportRun
from unfuse.report.rows import headlines, method_lines
from unfuse.report.summary import FORMULAS, Summary
from unfuse.report.text import printable

_PACKAGE: Final = "unfuse.report.html"
_POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {scripts}"
_STAGE4: Final = ("decoupled", "hooked")
"""Protocols that know a Stage 4 which is not a control's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _RunView:
    """What the page says of one run in words."""

    look: Look
    word: str
    good: bool
    summary: Summary | None
    error: str | None
    notes: tuple[str, ...]
    keys: tuple[tuple[str, str], ...]
    headlines: tuple[str, ...]
    methods: tuple[str, ...]
    checks: tuple[RunCheck, ...]
    verified: str
    """What is known of ``unfuse verify``: which weights, when, or that it was not run."""
    verify_rows: tuple[Any, ...]
    facts: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


def report_html(runs: Sequence[ReportRun], *, command: Sequence[str] = ()) -> str:
    """Runs as one self-contained page.

    Args:
        runs: at least one; the order is that of every list on the page.
        command: what made them all, where it is not each run's own.
    """
    looks = looks_of(runs)
    shown = [(look, run) for look, run in zip(looks, runs, strict=True) if run.part.measured]
    protocols = dict.fromkeys(run.part.protocol for _, run in shown)
    by_protocol = {name: [(look, run) for look, run in shown if run.part.protocol == name] for name in protocols}
    several = len(runs) > 1
    comparison = compare([run.part for run in runs])
    grouped: dict[str, list[Table]] = {kind: [] for kind in get_args(Kind)}
    for table in tables(comparison) if several else []:
        grouped[table.kind].append(table)
    longest = time_figures.longest_ms(shown)
    sections = {
        "time": [time_figures.where_time_goes(each, name, longest) for name, each in by_protocol.items()],
        "spread": [time_figures.spread(each, name) for name, each in by_protocol.items()],
        "drift": [time_figures.over_the_run(each, name) for name, each in by_protocol.items()],
        "tokens": [time_figures.against_tokens(each, name) for name, each in by_protocol.items() if name in _STAGE4],
        "roofline": [device_figures.under_the_roof(shown)],
        "memory": [device_figures.memory(shown), device_figures.energy(shown)],
    }
    specs = {panel.key: panel.spec for found in sections.values() for each in found for panel in each.panels}
    samples = sample_table(list(zip(looks, runs, strict=True)))
    views = [_view(look, run) for look, run in zip(looks, runs, strict=True)]
    vega, own = Markup(_script_safe(vega_script())), Markup(_text("page.js"))
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=_title(runs),
            several=several,
            headed=len(by_protocol) > 1,
            valid=comparison.valid if several else views[0].word == "VALID",
            word=("VALID" if comparison.valid else "INVALID") if several else views[0].word,
            made=_made(runs),
            views=views,
            key_names=next(([name for name, _ in view.keys] for view in views if view.keys), []),
            tables=grouped,
            sections=sections,
            specs=specs,
            samples=samples,
            pictures={key: picture.uri for key, picture in samples.pictures.items()},
            commands=_commands(runs, command),
            formulas=FORMULAS,
            style=Markup(_text("style.css")),
            vega=vega,
            script=own,
            policy=_POLICY.format(scripts=f"{_hash(vega)} {_hash(own)}"),
        )
    )


def _environment() -> Environment:
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
            checks=(),
            verified="Not run, so not verified.",
            verify_rows=(),
            facts=(),
        )
    verified, rows = _verified(run)
    control = part.protocol == "reencode"
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
        checks=run_checks(part.manifest, part.records, run.probes, s),
        verified=verified,
        verify_rows=rows,
        facts=tuple(
            (name, tuple((key, _fact(value)) for key, value in flat(facts)))
            for name, facts in (
                ("Model", part.manifest.model),
                ("Options", part.manifest.config),
                ("Data", part.manifest.dataset),
                ("Environment", part.manifest.environment),
                ("Clock", part.manifest.clock),
            )
        ),
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


def _verified(run: ReportRun) -> tuple[str, tuple[Any, ...]]:
    """What ``unfuse verify`` found on these very weights; rows of others are not shown."""
    record, manifest = run.verification, run.part.manifest
    assert manifest is not None
    if record is None:
        where = run.folder.name if run.folder else "RUN"
        return f"Not verified: unfuse verify MODEL --output {where} adds its nine checks here.", ()
    here = {name: manifest.model.get(name) for name in ("fingerprint", "dtype", "engine")}
    there = {"fingerprint": record.fingerprint, "dtype": record.dtype, "engine": record.engine}
    if other := [name for name in here if here[name] != there[name]]:
        return f"Not verified: the verification in this folder is of another {' and '.join(other)}.", ()
    return f"unfuse verify, {record.created}, on {record.device}, sample {record.sample_id}", record.rows


def _fact(value: object) -> str:
    if value is None:
        return "not recorded"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _commands(runs: Sequence[ReportRun], command: Sequence[str]) -> list[str]:
    """What to type to have it all again; each once."""
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
    """Nothing in a script may look like its end, nor like a comment of the page around it."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
