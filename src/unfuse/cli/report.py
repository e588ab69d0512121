"""``unfuse report``: one page about one run or several side by side."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from unfuse.errors import InputError
from unfuse.report import print_line, printable
from unfuse.runs import read_comparison
from unfuse.runs.atomic import write_text_atomic
from unfuse.runs.manifest import COMPARISON_FILE
from unfuse.runs.place import HTML_FILE


@click.command(short_help="Write runs and comparisons as one page.")
@click.argument("runs", nargs=-1, required=True, metavar="RUN [RUN ...]", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="The page; default: report.html in the folder of the run, or here for several.",
)
def report(runs: tuple[Path, ...], output: Path | None) -> int:
    """Write report.html of run folders, or of the folders of whole comparisons."""
    places = [run.resolve() for run in runs]
    if twice := [str(run) for run, place in zip(runs, places, strict=True) if places.count(place) > 1]:
        raise InputError("runs", found=f"{twice[-1]} twice", expected="each once")
    place = output or (runs[0] if len(runs) == 1 else Path()) / HTML_FILE
    if output is None and len(runs) > 1 and place.exists():
        raise InputError(str(place), found="a file already", expected="a new one", fix="name one with --output")
    if output is not None and not place.absolute().parent.is_dir():
        raise InputError(str(place), found="no such folder", expected="a file in a folder that exists")

    from unfuse.report.reading import read_runs

    found = read_runs(runs)
    single = len(runs) == 1 and (runs[0] / COMPARISON_FILE).is_file()
    command = read_comparison(runs[0]).command if single else ()

    from unfuse.report.html import report_html  # loads Altair, which waits until the runs are read

    write_text_atomic(place, report_html(found, command=command))
    console = Console(highlight=False, soft_wrap=True)
    size = place.stat().st_size / 2**20
    print_line(console, f"{len(found)} run{'s' if len(found) > 1 else ''}, {size:.1f} MiB: {printable(str(place))}")
    return 0
