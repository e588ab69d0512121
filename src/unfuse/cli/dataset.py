"""``unfuse dataset``: make, check and describe data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click
from rich.console import Console

from unfuse.cli.interrupts import command_line, on_interrupt
from unfuse.cli.options import time_unit_option
from unfuse.errors import InputError
from unfuse.events.time_units import TimeUnit
from unfuse.report import print_line, printable
from unfuse.report.progress import counting_bar


@click.group(short_help="Make, check and describe data sets.")
def dataset() -> None:
    """Make, check and describe data sets in the instruction-set layout."""


@dataset.command(short_help="Simulate a data set with reference answers.")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--count", type=int, default=200, show_default=True, help="Samples.")
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Seed of the first scene; the model was trained on other seeds.",
)
@click.option("--workers", type=int, default=0, help="Processes; default: one per core.")
def demo(out: Path, count: int, seed: int, workers: int) -> int:
    """Simulate a data set into the folder OUT: events, event frames, video, questions and reference answers."""
    _at_least(1, count=count)
    _at_least(0, seed=seed, workers=workers)

    from unfuse.samples.demo.folder import FIRST_SEED, demo_rows, write_demo_dataset

    console = Console(highlight=False, soft_wrap=True)
    on_interrupt(partial(_stopped, click.get_current_context()))
    with _bar(console, "samples", count) as bar:
        write_demo_dataset(out, demo_rows(count, FIRST_SEED + seed), workers=workers, done=bar)
    print_line(console, f"{count} samples in {out}")
    return 0


@dataset.command(short_help="Cut recordings into a data set of windows.")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--window", default="1s", show_default=True, help="Length of a window: 1s, 500ms, 250us.")
@click.option("--events", type=int, help="Length of a window as a number of events instead.")
@click.option("--stride", help="Distance between starts of windows, in the unit of the length; default: the length.")
@click.option("--frames", type=int, default=5, show_default=True, help="Event frames per window.")
@click.option(
    "--questions",
    type=click.Path(path_type=Path),
    help="File with one question per line, or a JSON list; default: the default question.",
)
@click.option("--rectify", is_flag=True, help="Rectify the events with rectify_map.h5.")
@time_unit_option
@click.option("--max-windows", type=int, help="Only the first N windows of each recording.")
@click.option("--workers", type=int, default=0, help="Processes; default: one per core.")
def build(
    source: Path,
    out: Path,
    window: str,
    events: int | None,
    stride: str | None,
    frames: int,
    rectify: bool,
    questions: Path | None,
    time_unit: TimeUnit | None,
    max_windows: int | None,
    workers: int,
) -> int:
    """Cut SOURCE, an event file or a folder of DSEC sequences, into windows and write them into the folder OUT."""
    _at_least(0, workers=workers)
    if max_windows is not None:
        _at_least(1, **{"max-windows": max_windows})

    from unfuse.samples.build import Windowing, parse_time, plan, write_dataset
    from unfuse.samples.sources import find_recordings
    from unfuse.samples.text_file import read_questions
    from unfuse.stages import DEFAULT_QUESTION

    if events is None:
        length, step = parse_time(window), parse_time(stride) if stride else None
    else:
        if stride is not None and not stride.isdigit():
            raise InputError("stride", found=repr(stride), expected="a number of events, like the window")
        length, step = None, int(stride) if stride else None
    windowing = Windowing(window_us=length, events=events, stride=step, frames=frames, rectify=rectify)
    texts = read_questions(questions) if questions else (DEFAULT_QUESTION,)
    found = plan(find_recordings(source, time_unit), windowing, max_windows)
    console = Console(highlight=False, soft_wrap=True)
    on_interrupt(partial(_stopped, click.get_current_context()))
    with _bar(console, "windows", found.count) as bar:
        write_dataset(out, found, texts, workers=workers, done=bar)
    print_line(console, f"{found.count} windows, {found.count * len(texts)} samples in {out}")
    for note in found.notes:
        print_line(console, f"Note: {note}")
    if found.left_out:
        print_line(console, f"{found.left_out} windows with fewer than {frames} events are left out")
    return 0


@dataset.command(short_help="Read all files and report every defect.")
@click.argument("folder", type=click.Path(path_type=Path))
def check(folder: Path) -> int:
    """Read all files in a data set's FOLDER and report every defect; exit code 1 if there is one."""
    from unfuse.samples.dataset import chat_notes, find_defects, read_rows

    console = Console(highlight=False, soft_wrap=True)
    total = len(read_rows(folder))
    with _bar(console, "rows", total) as bar:
        defects = find_defects(folder, bar)
    for defect in defects:
        print_line(console, str(defect))
    for note in chat_notes(folder):
        print_line(console, f"Note: {note}")
    print_line(console, f"{total} rows, {len(defects)} defects")
    return 1 if defects else 0


@dataset.command(short_help="Show counts, sizes and a preview.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--picture", type=click.Path(path_type=Path, dir_okay=False), help="Also write the preview as a PNG file."
)
def info(folder: Path, picture: Path | None) -> int:
    """Show counts, durations, event rates, sizes and a preview of a data set's FOLDER."""
    from unfuse.report.dataset import print_dataset
    from unfuse.samples.description import contact_sheet, describe_dataset
    from unfuse.samples.writing import write_picture

    console = Console(highlight=False, soft_wrap=True)
    described = describe_dataset(folder)
    sheet = contact_sheet(described)
    print_dataset(console, described, sheet)
    if picture is not None:
        try:
            write_picture(picture, sheet, private=False)
        except OSError as error:
            raise InputError(str(picture), found=error.strerror or error, expected="a writable path") from None
        print_line(console, f"picture in {picture}")
    return 0


def _stopped(context: click.Context) -> list[str]:
    """Return how to continue an interrupted command that writes a folder."""
    out = printable(str(context.params["out"]))
    return [f"Stopped. Finished files are kept in {out}.", f"Go on with: {command_line(context)}"]


def _at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise InputError(name, found=value, expected=f"at least {least}")


@contextmanager
def _bar(console: Console, label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar; the block calls the function with the number that is done."""
    with counting_bar(console) as bar:
        task = bar.add_task(label, total=total)
        yield lambda number: bar.count(task, number)
