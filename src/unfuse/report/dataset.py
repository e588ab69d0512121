"""A data set's description on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.text import Text

from unfuse.report.table import Table
from unfuse.report.terminal import print_line, print_table
from unfuse.samples.description import DatasetDescription

_WIDTH: Final = 96
"""Characters of the picture, each of which shows two pixels."""


def print_dataset(console: Console, described: DatasetDescription, sheet: NDArray[np.uint8]) -> None:
    """Print counts, a table of the recordings, and the picture if there is a terminal to show it on."""
    print_line(console, f"{described.folder}")
    print_line(
        console,
        f"{described.samples} samples, {len(described.recordings)} recordings, {described.questions} questions, "
        f"{described.references} reference answers, {described.with_frames} with event frames, "
        f"{described.with_video} with video",
    )
    for note in described.notes:
        print_line(console, f"Note: {note}")
    sizes = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in described.file_bytes.items() if size)
    print_line(console, f"files: {sizes}")
    if described.recordings:
        print_table(console, _recordings(described))
    if console.is_terminal:
        console.print(_half_blocks(sheet, min(_WIDTH, console.width)))


def _recordings(described: DatasetDescription) -> Table:
    """Return the least, the median and the most of everything that differs between recordings, and its total."""
    recorded = described.recordings
    events, brighter = sum(r.events for r in recorded), sum(r.brighter for r in recorded)
    seconds = sum(r.duration_us for r in recorded) / 1e6
    quantities: list[tuple[str, Sequence[float], str]] = [
        ("events", [r.events for r in recorded], f"{events:,}"),
        ("duration, ms", [r.duration_us / 1e3 for r in recorded], f"{seconds:,.4g} s"),
        ("million events a second", [r.rate / 1e6 for r in recorded], ""),
        ("brighter, %", [100 * r.brighter / r.events for r in recorded], f"{100 * brighter / events:.1f}"),
        ("width, pixels", [r.size[0] for r in recorded], ""),
        ("height, pixels", [r.size[1] for r in recorded], ""),
    ]
    rows = [
        (name, *(f"{value:,.4g}" for value in np.percentile(values, (0, 50, 100))), total)
        for name, values, total in quantities
    ]
    return Table(title="", columns=("", "least", "median", "most", "all"), rows=tuple(rows))


def _half_blocks(sheet: NDArray[np.uint8], width: int) -> Text:
    """Draw the upper pixel of each character in the foreground and the lower one behind it."""
    height = max(round(sheet.shape[0] / sheet.shape[1] * width / 2), 1) * 2
    small = np.asarray(Image.fromarray(sheet).resize((width, height), Image.Resampling.BOX))
    text = Text()
    for upper, lower in zip(small[::2], small[1::2], strict=True):
        for above, below in zip(upper, lower, strict=True):
            text.append("▀", style=f"rgb({above[0]},{above[1]},{above[2]}) on rgb({below[0]},{below[1]},{below[2]})")
        text.append("\n")
    return text
