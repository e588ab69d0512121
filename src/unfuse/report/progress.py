"""Bars that only their owner draws: no thread of their own runs while something is measured."""

from __future__ import annotations

import time
from typing import Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

_DRAW_EVERY_S: Final = 0.1


def can_draw(console: Console) -> bool:
    """Return True if the output is a terminal with a movable cursor; a forced colour is not enough."""
    return console.is_terminal and not console.is_dumb_terminal and console.file.isatty()


class OwnedProgress(Progress):
    """Bars without a refresh thread; disabled if nothing can be drawn."""

    def __init__(self, console: Console, *columns: ProgressColumn):
        super().__init__(
            *columns, console=console, disable=not can_draw(console), auto_refresh=False, transient=True
        )  # fmt: skip
        self._drawn_s = float("-inf")

    def stop(self) -> None:
        """Remove the bars. Older versions of rich print a line even if nothing was drawn."""
        if not self.disable:
            super().stop()

    def count(self, task: TaskID, completed: int) -> None:
        """Set the count of a task, and draw it unless that was done just now."""
        now = time.monotonic()
        draw = now - self._drawn_s >= _DRAW_EVERY_S
        if draw:
            self._drawn_s = now
        self.update(task, completed=completed, refresh=draw)


def counting_bar(console: Console, *columns: ProgressColumn) -> OwnedProgress:
    """Return a bar with a count.

    Args:
        console: draws the bar.
        *columns: shown between the count and the time that is left.
    """
    return OwnedProgress(
        console, TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *columns, TimeRemainingColumn()
    )
