"""A benchmark as it runs: a dashboard on a terminal, plain lines everywhere else.

It is drawn where a record comes in, between two samples, and by the thread that measures: a thread that drew it again
from time to time would take the interpreter's lock inside timed stages. So its clock stands still while a sample runs.
Lines go above it and stay; the dashboard goes when the run ends, however it ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import fmean, median
from types import TracebackType
from typing import Final, Self

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from unfuse.report.comparison import stage_ms, stage_names
from unfuse.report.rows import number
from unfuse.report.terminal import print_line
from unfuse.report.text import printable
from unfuse.runs.schema import SampleRecord

_ANSWER_ROWS: Final = 2
_BAR_CELLS: Final = (8, 40)
"""Least and most width of the bar; where there is less room, the words stand alone."""


class LiveView:
    """What a user sees while samples are measured. A context manager; outside of it only lines are printed."""

    def __init__(
        self,
        console: Console,
        *,
        samples: int,
        parts: int = 1,
        repeats_s: float = 0.0,
        now: Callable[[], float] = time.monotonic,
    ):
        """Shows nothing yet.

        Args:
            console: where to.
            samples: of each part.
            parts: models times protocols.
            repeats_s: how long repeats of one sample may take once the samples are measured.
            now: a clock, in seconds.
        """
        self._console = console
        self._samples = samples
        self._parts = parts
        self._repeats_s = repeats_s
        self._now = now
        self._seen: set[tuple[str, str]] = set()
        self._live = (
            Live(self, console=console, auto_refresh=False, transient=True, vertical_overflow="crop")
            if can_draw(console)
            else None
        )
        self._start("", "decoupled")

    def __enter__(self) -> Self:
        """Draws from now on, where it can."""
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leaves the terminal as it was, under the lines."""
        if self._live:
            self._live.stop()

    def begin(self, model: str, protocol: str) -> None:
        """Another part: medians start afresh."""
        self._seen.add((model, protocol))
        self._start(model, protocol)
        self._draw()

    def _start(self, model: str, protocol: str) -> None:
        self._model, self._protocol = model, protocol
        self._ms: dict[str, list[float]] = {stage: [] for stage in stage_names(protocol)}
        self._tokens = self._failed = self._warmups = self._done = 0
        self._last: tuple[int, SampleRecord] | None = None
        self._ended_at: list[float] = []
        self._started = self._now()

    def show(self, index: int, record: SampleRecord, *lines: str) -> None:
        """A record is safe; ``lines`` are what is to be printed of it."""
        self._note(index, record)
        if lines:
            # One print, for each draws the dashboard again.
            print_line(self._console, "\n".join(lines))
        self._draw()

    def _note(self, index: int, record: SampleRecord) -> None:
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

    def _draw(self) -> None:
        if self._live and self._live.is_started:
            self._live.refresh()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """As much as there is room for; one row is left to the lines above."""
        width, room = console.size.width, console.size.height - 1
        sections: list[tuple[int, list[RenderableType]]] = [
            (4, [Rule(self._title(), align="left", style="dim")]),
            (0, [self._progress(width)]),
            (1, [self._table()]),
            (2, [_row(self._counts())]),
            (3, list(self._answer(console, width))),
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

    def _title(self) -> Text:
        part = f" (run {len(self._seen)} of {self._parts})" if self._parts > 1 else ""
        return Text(printable(f"{self._model}: {self._protocol}{part}"))

    def _progress(self, width: int) -> RenderableType:
        gone = self._now() - self._started
        words = f"{self._done} of {self._samples} samples, {_clock(gone)}{self._left()}"
        least, most = _BAR_CELLS
        cells = min(width - len(words) - 1, most)
        if cells < least:
            return _row(words)
        row = Table.grid(padding=(0, 1, 0, 0))
        row.add_row(ProgressBar(total=self._samples, completed=self._done, width=cells), _row(words))
        return row

    def _left(self) -> str:
        if self._done >= self._samples:
            return f"; now repeats of one sample, up to {self._repeats_s:.0f} s" if self._repeats_s else "; ending"
        gaps = [later - sooner for sooner, later in zip(self._ended_at, self._ended_at[1:], strict=False)]
        if gaps:
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
        text = f"{measured} measured, {self._failed} failed, {self._warmups} warm-ups apart"
        if seconds := sum(self._ms["sum of stages"]) / 1000:
            text += f"; {measured / seconds:.3g} samples/s, {self._tokens / seconds:.1f} output tokens/s"
        return text

    def _answer(self, console: Console, width: int) -> Iterator[RenderableType]:
        if self._last is None:
            return
        index, record = self._last
        yield _row(f"Sample {index}: {printable(record.question or '')}")
        text = record.text if record.status == "ok" else f"FAILED: {record.error}"
        rows = Text(printable(text or "")).wrap(console, max(width - 2, 1))
        for shown in rows[:_ANSWER_ROWS]:
            yield _row(f"  {shown.plain}")
        if len(rows) > _ANSWER_ROWS:
            yield _row("  ...")


def can_draw(console: Console) -> bool:
    """Whether the output is a terminal whose cursor can be moved; a forced colour does not make it one."""
    return console.is_terminal and not console.is_dumb_terminal and console.file.isatty()


def _row(text: str) -> Text:
    return Text(printable(text), no_wrap=True, overflow="ellipsis", end="\n")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
