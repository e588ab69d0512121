"""``unfuse dataset``: makes data sets."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from unfuse.errors import InputError
from unfuse.report import print_line


@click.group()
def dataset() -> None:
    """Make data sets in the instruction-set layout."""


@dataset.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--count", type=int, default=200, show_default=True, help="Samples.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the first scene; the model learned from none.")
@click.option("--workers", type=int, default=0, help="Processes; default: one a core.")
def demo(out: Path, count: int, seed: int, workers: int) -> int:
    """Simulate a data set into the folder OUT: events, event frames, video, questions and reference answers."""
    for name, value, least in (("count", count, 1), ("seed", seed, 0), ("workers", workers, 0)):
        if value < least:
            raise InputError(name, found=value, expected=f"at least {least}")

    from unfuse.samples.demo.folder import FIRST_SEED, demo_rows, write_demo_dataset

    console = Console(highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("samples", total=count)
        write_demo_dataset(
            out,
            demo_rows(count, FIRST_SEED + seed),
            workers=workers,
            done=lambda number: progress.update(bar, completed=number),
        )
    print_line(console, f"{count} samples in {out}")
    return 0
