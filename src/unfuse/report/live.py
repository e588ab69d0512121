"""A benchmark as it runs: a dashboard on a terminal, plain lines everywhere else.

The thread that measures draws the dashboard between two samples, when a record comes in. A refresh thread would take
the interpreter's lock inside timed stages. So the clock of the dashboard does not advance while a sample runs. Lines
above the dashboard stay; the dashboard is removed when the run ends, with an error or without.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from statistics import fmean, median
from typing import Final

from rich.console import Console, RenderableType
from rich.progress import BarColumn, TextColumn
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from unfuse.records.schema import SampleRecord
from unfuse.report.comparison import stage_ms, stage_names
from unfuse.report.progress import OwnedProgress
from unfuse.report.terminal import print_line
from unfuse.report.text import number, printable

_ANSWER_ROWS: Final = 2
_BAR_CELLS: Final = (8, 40)
"""Least and most width of the bar. If there is less room, the words are shown without the bar."""


class LiveView(OwnedProgress):
    """Progress of a benchmark. A context manager; outside of it only lines are printed."""

    def __init__(
        self,
        console: Console,
        *,
        samples: int,
        parts: int = 1,
        repeats_s: float = 0.0,
        now: Callable[[], float] = time.monotonic,
    ):
        """Prepare the dashboard; nothing is drawn yet.

        Args:
            console: draws the dashboard.
            samples: of each part.
            parts: models times protocols.
            repeats_s: how long repeats of one sample may take once the samples are measured.
            now: a clock, in seconds.
        """
        self._seen: set[tuple[str, str]] = set()
        self._bar = BarColumn()
        words = TextColumn("{task.description}", markup=False)
        super().__init__(console, self._bar, words)
        self._samples = samples
        self._parts = parts
        self._repeats_s = repeats_s
        self._now = now
        self._reset("", "decoupled")
        self._task = self.add_task("", total=samples)

    def begin(self, model: str, protocol: str) -> None:
        """Start another part, with medians of its own."""
        self._seen.add((model, protocol))
        self._reset(model, protocol)
        self.refresh()

    def show(self, index: int, record: SampleRecord, *lines: str) -> None:
        """Take in a record that is on the disk, and print ``lines`` about it."""
        self._count(index, record)
        if lines:
            # One print, for each draws the dashboard again.
            print_line(self.console, "\n".join(lines))
        self.refresh()

    def get_renderables(self) -> Iterator[RenderableType]:
        """Return as much of the dashboard as there is room for; one row is left to the lines above."""
        if not self._seen:
            return  # ``Progress`` asks for it while it is made, when there is no console yet
        width, room = self.console.size.width, self.console.size.height - 1
        sections: list[tuple[int, list[RenderableType]]] = [
            (4, [Rule(self._title(), align="left", style="dim")]),
            (0, [self._progress(width)]),
            (1, [self._table()]),
            (2, [_row(self._counts())]),
            (3, list(self._answer(width))),
        ]
        heights = {importance: len(rows) for importance, rows in sections}
        heights[1] = 1 + len(self._ms)
        fits, used = set(), 0
        for importance in sorted(heights):
            if used + heights[importance] <= room:
                fits.add(importance)
                used += heights[importance]
        for importance, rows in sections:
            if importance in fits:
                yield from rows

    def _reset(self, model: str, protocol: str) -> None:
        self._model, self._protocol = model, protocol
        self._ms: dict[str, list[float]] = {stage: [] for stage in stage_names(protocol)}
        self._tokens = self._failed = self._warmups = self._done = 0
        self._last: tuple[int, SampleRecord] | None = None
        self._ended_at: list[float] = []
        self._started = self._now()

    def _count(self, index: int, record: SampleRecord) -> None:
        if record.warmup:
            self._warmups += 1
            return
        self._done = index + 1
        self._last = (index, record)
        self._ended_at.append(self._now())
        if record.status == "failed":
            self._failed += 1
            return
        self._tokens += record.output_tokens or 0
        for stage, values in self._ms.items():
            values.append(stage_ms(record, stage, self._protocol))

    def _title(self) -> Text:
        part = f" (run {len(self._seen)} of {self._parts})" if self._parts > 1 else ""
        return Text(printable(f"{self._model}: {self._protocol}{part}"))

    def _progress(self, width: int) -> RenderableType:
        words = f"{self._done} of {self._samples} samples, {_clock(self._now() - self._started)}{self._left()}"
        least, most = _BAR_CELLS
        cells = min(width - len(words) - 1, most)
        if cells < least:
            return _row(words)
        self._bar.bar_width = cells
        self.update(self._task, completed=self._done, description=words)
        return self.make_tasks_table(self.tasks)

    def _left(self) -> str:
        """Return the time that is left, or the step of the run."""
        if self._done >= self._samples:
            return f"; now repeats of one sample, up to {self._repeats_s:.0f} s" if self._repeats_s else "; ending"
        if gaps := [later - sooner for sooner, later in pairwise(self._ended_at)]:
            return f", about {_clock(median(gaps) * (self._samples - self._done))} left"
        if self._last is None:
            return "; warming up" if self._warmups else "; first sample"
        return ""

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for index, name in enumerate(("stage", "median ms", "last ms", "share")):
            table.add_column(name, justify="right" if index else "left", no_wrap=True, overflow="ellipsis")
        whole = fmean(sums) if (sums := self._ms["sum of stages"]) else 0.0
        for stage, values in self._ms.items():
            last = values[-1] if values else None
            share = f"{100 * fmean(values) / whole:.1f} %" if values and whole else "-"
            table.add_row(stage, number(median(values) if values else None), number(last), share)
        return table

    def _counts(self) -> str:
        measured = len(self._ms["sum of stages"])
        text = f"{measured} measured, {self._failed} failed, {self._warmups} warm-ups"
        if seconds := sum(self._ms["sum of stages"]) / 1000:
            text += f"; {measured / seconds:.3g} samples/s, {self._tokens / seconds:.1f} output tokens/s"
        return text

    def _answer(self, width: int) -> Iterator[RenderableType]:
        if self._last is None:
            return
        index, record = self._last
        yield _row(f"Sample {index}: {printable(record.question or '')}")
        text = record.text if record.status == "ok" else f"FAILED: {record.error}"
        rows = Text(printable(text or "")).wrap(self.console, max(width - 2, 1))
        for row in rows[:_ANSWER_ROWS]:
            yield _row(f"  {row.plain}")
        if len(rows) > _ANSWER_ROWS:
            yield _row("  ...")


def _row(text: str) -> Text:
    return Text(printable(text), no_wrap=True, overflow="ellipsis", end="\n")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
