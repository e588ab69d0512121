"""A change between two runs as lines for a terminal, or as Markdown for a comment on a pull request."""

from __future__ import annotations

from rich.table import Table

from unfuse.report.change import Change, StageChange

_SHOWN = (
    "ratio is B over A, {of}, with its 95 % bootstrap interval; changes below {threshold:g} % are not called changes"
)


def remarks_of(change: Change) -> list[str]:
    """What makes the two unequal, first of all."""
    lines = [f"not the same work: {what}: {a} (A), {b} (B)" for what, (a, b) in change.work.items()]
    lines += [f"not the same environment: {what}: {a} (A), {b} (B)" for what, (a, b) in change.environment.items()]
    if not change.samples:
        lines.append("no sample in common: medians of other samples are compared")
    return lines


def method(change: Change) -> str:
    """How to read the numbers."""
    of = f"the median over {change.samples} common samples" if change.samples else "of medians"
    return _SHOWN.format(of=of, threshold=change.noise_threshold_pct)


def change_table(change: Change) -> Table:
    """For a terminal."""
    table = Table(title=f"B against A: {change.protocol}", title_justify="left", box=None, pad_edge=False)
    for index, name in enumerate(("stage", "A ms", "B ms", "ratio", "95 % interval", "verdict")):
        table.add_column(name, justify="right" if 0 < index < 5 else "left", no_wrap=True)
    for row in map(_cells, change.stages):
        table.add_row(*row)
    return table


def change_markdown(change: Change) -> str:
    """For a pull request."""
    lines = [f"### unfuse: B against A, {change.protocol}", ""]
    lines += [f"- **{remark.replace('|', '/')}**" for remark in remarks_of(change)]
    lines += ["", "| stage | A ms | B ms | ratio | 95 % interval | verdict |", "|---|--:|--:|--:|--:|---|"]
    lines += [f"| {' | '.join(_cells(stage))} |" for stage in change.stages]
    return "\n".join([*lines, "", method(change), ""])


def _cells(stage: StageChange) -> tuple[str, ...]:
    found = stage.ratio
    interval = "-" if found.low is None else f"{found.low:.3f} .. {found.high:.3f}"
    numbers = (f"{stage.before_ms:.3f}", f"{stage.after_ms:.3f}", f"{found.value:.3f}")
    return (stage.stage, *numbers, interval, stage.word)
