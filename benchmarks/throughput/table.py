"""What was measured, as Markdown."""

from __future__ import annotations

from typing import Any


def table(values: dict[str, Any]) -> str:
    """A row a way of answering; what failed says why."""
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
        lines.append(f"| {name} | {rate:.2f} | {ratio} | {_where(part)} |")
    together, same = values.get("questions together", {}), values.get("same answers", {})
    for other in ("questions afresh", "questions one by one"):
        if "samples_per_s" in together and "samples_per_s" in values.get(other, {}):
            ratio = together["samples_per_s"] / values[other]["samples_per_s"]
            lines += ["", f"Ten questions of each scene together: {ratio:.2f} times as fast as {other}."]
    if same:
        lines += ["", f"Of {same['of']} answers, {same['same']} have the very tokens of the pass without reuse."]
    counts = sorted(
        int(name.split()[0]) for name in values if name.endswith(" devices") and "samples_per_s" in values[name]
    )
    if len(counts) > 1:
        one, many = (values[f"{count} devices"]["samples_per_s"] for count in (counts[0], counts[-1]))
        lines += ["", f"{counts[-1]} devices: {many / one:.2f} times {counts[0]}."]
    return "\n".join(lines) + "\n"


def _where(part: dict[str, Any]) -> str:
    times = part.get("times")
    if not times:
        return ""
    stages = ", ".join(f"{stage} {times[f'{stage}_s']:.2f} s" for stage in ("encode", "prefill", "decode"))
    return f"{times['wall_s']:.2f} s: {stages}"
