"""Other work on the machine of a run: at its start, between its samples and at its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from unfuse.records.schema import Manifest, Probes, SampleRecord

RULES: Final = ("gpu-processes", "gpu-busy", "gpu-throttled", "cpu-busy", "cpu-load")


def isolation_findings(manifest: Manifest, records: Sequence[SampleRecord], probes: Probes) -> tuple[str, ...]:
    """Return every finding, a line for each rule and phase: how often, and the first case."""
    start = (manifest.environment.get("isolation") or {}).get("findings", ())
    found = [f"not isolated at the start: {each['rule']}: {each['detail']}" for each in start]
    seen = [(record.sample_id, text) for record in records for text in record.disturbances]
    for rule in dict.fromkeys(text.partition(":")[0] for _, text in seen):
        mine = [(sample_id, text) for sample_id, text in seen if text.partition(":")[0] == rule]
        # A record may have several findings of a rule: one for each reason of throttling.
        runs = sum(any(text.partition(":")[0] == rule for text in record.disturbances) for record in records)
        where = f"{runs} of {len(records)} runs, first at sample {mine[0][0]}"
        found.append(f"not isolated: {mine[0][1]} ({where})")
    end = probes.isolation.findings if probes.isolation else ()
    found += [f"not isolated after the samples: {each.rule}: {each.detail}" for each in end]
    return tuple(found)


def isolation_line(findings: Sequence[str], unseen: dict[str, str] | None) -> str:
    """Return on one line how the machine was watched."""
    if unseen is None:
        return "Isolation: not watched by the version of unfuse that made the run."
    reasons: dict[str, list[str]] = {}
    for rule, reason in unseen.items():
        reasons.setdefault(reason, []).append(rule)
    blind = "".join(f"; not looked at: {', '.join(rules)} ({reason})" for reason, rules in reasons.items())
    word = f"{len(findings)} findings, see the warnings" if findings else "nothing found"
    return f"Isolation: {word}; {len(RULES) - len(unseen)} of {len(RULES)} rules{blind}."


def unseen_rules(manifest: Manifest, probes: Probes) -> dict[str, str] | None:
    """Return the rules that could not be evaluated, with reasons; None for a run older than the rules."""
    start = manifest.environment.get("isolation")
    if start is None and probes.isolation is None:
        return None
    return {**(start or {}).get("unseen", {}), **(probes.isolation.unseen if probes.isolation else {})}
