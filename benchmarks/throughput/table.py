"""Format the results as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def table(values: dict[str, Any]) -> str:
    """Return the table: one row per way of answering, with the reason of a failure."""
    about = values.get("about", {})
    device = about.get("device_name") or about.get("cpu") or "CPU"
    lines = [f"{about.get('model')} on {device}; torch {about.get('packages', {}).get('torch')}.", ""]
    lines += ["| files to answers | samples/s | times the seed's loop | where the time went |", "|---|---|---|---|"]
    base = values.get("seed", {}).get("samples_per_s")
    for name, part in values.items():
        if not isinstance(part, dict) or name in ("about", "same answers"):
            continue
        if isinstance(part.get("failed"), str):
            lines.append(f"| {name} | failed | | {part['failed'].replace('|', '/')} |")
            continue
        rate = part["samples_per_s"]
        ratio = f"{rate / base:.1f}" if base else ""
        lines.append(f"| {name} | {rate:.2f} | {ratio} | {_stage_times(part)} |")
    lines += [line for note in _notes(values) for line in ("", note)]
    return "\n".join(lines) + "\n"


def _notes(values: dict[str, Any]) -> Iterator[str]:
    """Yield a sentence for each comparison that was measured."""
    together, same = values.get("questions together", {}), values.get("same answers", {})
    for other in ("questions uncached", "questions one by one"):
        if "samples_per_s" in together and "samples_per_s" in values.get(other, {}):
            ratio = together["samples_per_s"] / values[other]["samples_per_s"]
            yield f"Ten questions of each scene together: {ratio:.2f} times as fast as {other}."
    if same:
        yield f"Of {same['of']} answers, {same['same']} have the same tokens as the pass without reuse."
    counts = sorted(
        int(name.split()[0]) for name in values if name.endswith(" devices") and "samples_per_s" in values[name]
    )
    if len(counts) > 1:
        one, many = (values[f"{count} devices"]["samples_per_s"] for count in (counts[0], counts[-1]))
        yield f"{counts[-1]} devices: {many / one:.2f} times {counts[0]}."


def _stage_times(part: dict[str, Any]) -> str:
    times = part.get("times")
    if not times:
        return ""
    stages = ", ".join(f"{stage} {times[f'{stage}_s']:.2f} s" for stage in ("encode", "prefill", "decode"))
    return f"{times['wall_s']:.2f} s: {stages}"
