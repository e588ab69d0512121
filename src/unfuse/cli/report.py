"""``unfuse report``: write one page about one run, or about several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from unfuse.errors import InputError
from unfuse.records import read_comparison
from unfuse.records.atomic import write_text_atomic
from unfuse.records.manifest import COMPARISON_FILE
from unfuse.records.run_dir import HTML_FILE
from unfuse.report import print_line, printable


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
    page = _page(runs, output)

    from unfuse.report.reading import read_runs

    found = read_runs(runs)
    single = len(runs) == 1 and (runs[0] / COMPARISON_FILE).is_file()
    command = read_comparison(runs[0]).command if single else ()

    from unfuse.report.html import report_html  # loads Altair, so import it only after the runs are read

    write_text_atomic(page, report_html(found, command=command), private=False)
    console = Console(highlight=False, soft_wrap=True)
    size = page.stat().st_size / 2**20
    print_line(console, f"{len(found)} run{'s' if len(found) > 1 else ''}, {size:.1f} MiB: {printable(str(page))}")
    return 0


def _page(runs: Sequence[Path], output: Path | None) -> Path:
    """Return the path of the page.

    Raises:
        InputError: a run is given twice, or the page has no output path.
    """
    folders = [run.resolve() for run in runs]
    if twice := [str(run) for run, folder in zip(runs, folders, strict=True) if folders.count(folder) > 1]:
        raise InputError("runs", found=f"{twice[-1]} twice", expected="each run once")
    page = output or (runs[0] if len(runs) == 1 else Path()) / HTML_FILE
    if output is None and len(runs) > 1 and page.exists():
        raise InputError(str(page), found="a file", expected="a new file", fix="name a file with --output")
    if output is not None and not page.absolute().parent.is_dir():
        raise InputError(str(page), found="no such folder", expected="a file in a folder that exists")
    return page
