"""A change between two runs as lines for a terminal, or as Markdown for a comment on a pull request."""

from __future__ import annotations

from rich.table import Table

from unfuse.report.change import Change, SideFacts, StageChange
from unfuse.report.differences import Differences
from unfuse.report.markdown import cell
from unfuse.report.text import printable

_COLUMNS = ("stage", "A ms", "B ms", "ratio", "95 % interval", "verdict")


def sides_of(change: Change) -> list[str]:
    """Which runs A and B are."""
    return [
        f"{letter}: {printable(f'{side.name} ({side.run_id}, {side.model}, unfuse {side.code})')}"
        for letter, side in (("A", change.before), ("B", change.after))
    ]


def remarks_of(change: Change) -> list[str]:
    """What makes the two unequal, then what makes either doubtful; one line each."""
    lines = _unequal("work", change.work) + _unequal("environment", change.environment)
    if not change.samples:
        lines.append("no sample in common: medians of other samples are compared")
    if change.broken:
        names = ", ".join(change.broken[:5]) + (", ..." if len(change.broken) > 5 else "")
        lines.append(f"failed in B and measured in A: {names}")
    lines += [f"not judged: {reason}" for reason in change.unjudged()]
    lines += [*_doubts("A", change.before), *_doubts("B", change.after)]
    return [printable(line) for line in lines]


def headline(change: Change) -> str:
    """The verdicts in one line."""
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
    """How to read the numbers."""
    of = f"the median over {change.samples} common samples" if change.samples else "of medians"
    return (
        f"The ratio is B over A, {of}, with its 95 % bootstrap interval; a change is called one where the whole "
        f"interval lies beyond {change.noise_threshold_pct:.3g} %."
    )


def change_table(change: Change) -> Table:
    """For a terminal."""
    table = Table(title=f"B against A: {change.protocol}", title_justify="left", box=None, pad_edge=False)
    for index, name in enumerate(_COLUMNS):
        table.add_column(name, justify="right" if 0 < index < 5 else "left", no_wrap=True)
    for row in map(_cells, change.stages):
        table.add_row(*row)
    return table


def change_markdown(change: Change) -> str:
    """For a pull request."""
    lines = [f"### unfuse: B against A, {change.protocol}", "", f"**{headline(change)}**", ""]
    lines += [f"- {cell(each)}" for each in sides_of(change)]
    lines += [f"- **{cell(remark)}**" for remark in remarks_of(change)]
    lines += ["", f"| {' | '.join(_COLUMNS)} |", "|---|--:|--:|--:|--:|---|"]
    for stage in change.stages:
        *numbers, word = _cells(stage)
        lines.append(f"| {' | '.join([*numbers, word if word == 'no difference shown' else f'**{word}**'])} |")
    return "\n".join([*lines, "", method(change)])


def _doubts(letter: str, side: SideFacts) -> list[str]:
    return [f"{letter} is INVALID: {reason}" for reason in side.reasons] + [
        f"warning of {letter}: {warning}" for warning in side.warnings
    ]


def _unequal(kind: str, found: Differences) -> list[str]:
    lines = [f"not the same {kind}: {what}: {a} (A), {b} (B)" for what, (a, b) in found.values.items()]
    if found.one_sided:
        lines.append(f"recorded in one run only, {kind}: {', '.join(found.one_sided)}")
    return lines


def _cells(stage: StageChange) -> tuple[str, ...]:
    found = stage.ratio
    interval = "-" if found.low is None else f"{found.low:.3f} .. {found.high:.3f}"
    numbers = (f"{stage.before_ms:.3f}", f"{stage.after_ms:.3f}", f"{found.value:.3f}")
    return (stage.stage, *numbers, interval, stage.word)
