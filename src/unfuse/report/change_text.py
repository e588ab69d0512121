"""A change between two runs: its table, and the sentences around it."""

from __future__ import annotations

from unfuse.report.change import Change, SideFacts, StageChange
from unfuse.report.differences import Differences
from unfuse.report.table import Table
from unfuse.report.text import interval, number, printable, some


def sides_of(change: Change) -> list[str]:
    """Return the name, id, model and version of each run."""
    return [
        f"{letter}: {printable(f'{side.name} ({side.run_id}, {side.model}, unfuse {side.code})')}"
        for letter, side in (("A", change.before), ("B", change.after))
    ]


def remarks_of(change: Change) -> list[str]:
    """Return the differences between the two runs, then the doubts about either run, a line each."""
    lines = _unequal("work", change.work) + _unequal("environment", change.environment)
    if not change.samples:
        lines.append("no sample in common: medians of other samples are compared")
    if change.broken:
        lines.append(f"failed in B and measured in A: {some(change.broken)}")
    lines += [f"not judged: {reason}" for reason in change.unjudged()]
    lines += [*_doubts("A", change.before), *_doubts("B", change.after)]
    return [printable(line) for line in lines]


def headline(change: Change) -> str:
    """Return the verdicts in one line."""
    found = [
        f"{word}: {', '.join(f'{each.stage} {each.pct:+.1f} %' for each in stages)}"
        for word in ("slower", "faster")
        if (stages := [each for each in change.stages if each.word == word])
    ]
    rest = sum(each.word == "no difference shown" for each in change.stages)
    if not found:
        return "No difference shown in any stage."
    text = "; ".join(found) + (f"; no difference shown: {rest} rows" if rest else "")
    return f"{text[0].upper()}{text[1:]}."


def method(change: Change) -> str:
    """Return how to read the numbers."""
    count = change.samples
    of = f"the median of the ratios of {count} common samples" if count else "computed from the two medians"
    most = 1 + change.noise_threshold_pct / 100
    return (
        f"The ratio is B / A, {of}, with a 95 % bootstrap interval. A stage is slower if the whole interval is above "
        f"{most:.4g}, and faster if the whole interval is below {1 / most:.3g}."
    )


def change_table(change: Change) -> Table:
    """Return the stages of both runs, side by side."""
    return Table(
        title=f"B against A: {change.protocol}",
        columns=("stage", "A ms", "B ms", "ratio", "95 % interval", "verdict"),
        rows=tuple(_row(stage) for stage in change.stages),
        align="lrrrrl",
        emphasised=("slower", "faster"),
    )


def _doubts(letter: str, side: SideFacts) -> list[str]:
    return [f"{letter} is INVALID: {reason}" for reason in side.reasons] + [
        f"warning of {letter}: {warning}" for warning in side.warnings
    ]


def _unequal(kind: str, found: Differences) -> list[str]:
    lines = [f"not the same {kind}: {what}: {a} (A), {b} (B)" for what, (a, b) in found.values.items()]
    if found.one_sided:
        lines.append(f"recorded in one run only, {kind}: {', '.join(found.one_sided)}")
    return lines


def _row(stage: StageChange) -> tuple[str, ...]:
    found = stage.ratio
    numbers = (number(stage.before_ms, 3), number(stage.after_ms, 3), number(found.value, 3))
    return (stage.stage, *numbers, interval(found.low, found.high, 3), stage.word)
