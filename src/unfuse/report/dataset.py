"""A data set's description on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unfuse.report.terminal import print_line
from unfuse.samples.description import Described

_WIDTH: Final = 96
"""Characters of the picture, each of which shows two pixels."""


def print_dataset(console: Console, described: Described, sheet: NDArray[np.uint8]) -> None:
    """Counts, a table of what varies, and the picture where there is a terminal to show it on."""
    print_line(console, f"{described.folder}")
    print_line(
        console,
        f"{described.samples} samples, {len(described.recorded)} recordings, {described.questions} questions, "
        f"{described.references} reference answers, {described.with_frames} with event frames, "
        f"{described.with_video} with video",
    )
    sizes = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in described.file_bytes.items() if size)
    print_line(console, f"files: {sizes}")
    if described.recorded:
        table = Table("", "least", "median", "most", "all")
        for name, values, total in _rows(described):
            low, middle, high = np.percentile(values, (0, 50, 100))
            table.add_row(name, *(f"{value:,.4g}" for value in (low, middle, high)), total)
        console.print(table)
    if console.is_terminal:
        console.print(_blocks(sheet, min(_WIDTH, console.width)))


def _rows(described: Described) -> list[tuple[str, Sequence[float], str]]:
    found = described.recorded
    events, brighter = sum(one.events for one in found), sum(one.brighter for one in found)
    seconds = sum(one.duration_us for one in found) / 1e6
    return [
        ("events", [one.events for one in found], f"{events:,}"),
        ("duration, ms", [one.duration_us / 1e3 for one in found], f"{seconds:,.4g} s"),
        ("million events a second", [one.rate / 1e6 for one in found], ""),
        ("brighter, %", [100 * one.brighter / one.events for one in found], f"{100 * brighter / events:.1f}"),
        ("width, pixels", [one.size[0] for one in found], ""),
        ("height, pixels", [one.size[1] for one in found], ""),
    ]


def _blocks(sheet: NDArray[np.uint8], width: int) -> Text:
    """Half blocks, the upper pixel in the foreground and the lower behind it."""
    height = max(round(sheet.shape[0] / sheet.shape[1] * width / 2), 1) * 2
    small = np.asarray(Image.fromarray(sheet).resize((width, height), Image.Resampling.BOX))
    text = Text()
    for upper, lower in zip(small[::2], small[1::2], strict=True):
        for above, below in zip(upper, lower, strict=True):
            text.append("▀", style=f"rgb({above[0]},{above[1]},{above[2]}) on rgb({below[0]},{below[1]},{below[2]})")
        text.append("\n")
    return text
