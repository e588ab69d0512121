"""``unfuse compare``: two runs, stage by stage, and an exit code for a build."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console

from unfuse.errors import InputError
from unfuse.report.change import NOISE_THRESHOLD_PCT, change_between
from unfuse.report.change_text import change_markdown, change_table, method, remarks_of
from unfuse.report.terminal import print_line
from unfuse.runs import RunFolder

_FORMATS = ("text", "markdown", "json")


class _Percent(click.ParamType[float]):
    name = "PCT"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value).strip().removesuffix("%")
        try:
            number = float(text)
        except ValueError:
            number = -1.0
        if not 0 <= number < float("inf"):
            self.fail(f"{value!r} is no percentage such as 5 or 5%", param, ctx)
        return number


@click.command()
@click.argument("before", metavar="A", type=click.Path(path_type=Path))
@click.argument("after", metavar="B", type=click.Path(path_type=Path))
@click.option("--fail-on-regression", type=_Percent(), default=None, help="Exit code 1 if a stage is so much slower.")
@click.option(
    "--noise-threshold",
    type=_Percent(),
    default=NOISE_THRESHOLD_PCT,
    show_default=True,
    help="Smaller changes are not called changes.",
)
@click.option("--format", "form", default="text", help="text, markdown (for a pull request) or json.")
def compare(before: Path, after: Path, fail_on_regression: float | None, noise_threshold: float, form: str) -> int:
    """Compare run B with run A, stage by stage."""
    if form not in _FORMATS:
        raise InputError("format", found=repr(form), expected=", ".join(_FORMATS))
    runs = [RunFolder.open(path) for path in (before, after)]
    a, b = ((run.manifest, run.records()) for run in runs)
    change = change_between(a, b, noise_threshold_pct=noise_threshold)
    console = Console(highlight=False, soft_wrap=True)
    if form == "json":
        click.echo(json.dumps(change.to_dict(), indent=1))
    elif form == "markdown":
        click.echo(change_markdown(change))
    else:
        for remark in remarks_of(change):
            print_line(console, remark)
        console.print(change_table(change))
        print_line(console, f"The {method(change)}.")
    slower = change.regressions(fail_on_regression) if fail_on_regression is not None else ()
    for stage in slower:
        click.echo(f"REGRESSION: {stage.stage} is {stage.pct:.1f} % slower", err=True)
    return 1 if slower else 0
