"""Bars that only their owner draws: no thread of their own runs while something is measured."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn


def can_draw(console: Console) -> bool:
    """Return whether the output is a terminal whose cursor can be moved; a forced colour does not make it one."""
    return console.is_terminal and not console.is_dumb_terminal and console.file.isatty()


def counting_bar(console: Console, *columns: ProgressColumn) -> Progress:
    """Return a bar with a count, drawn by ``update(..., refresh=True)``; disabled where nothing can be drawn.

    Args:
        console: where the bar is drawn.
        *columns: shown between the count and the time that is left.
    """
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *columns, TimeRemainingColumn(),
        console=console, disable=not can_draw(console), auto_refresh=False, transient=True,
    )  # fmt: skip
