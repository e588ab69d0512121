"""``unfuse compare``: compare two runs stage by stage, with an exit code for a build."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console

from unfuse.errors import InputError, RunFolderError
from unfuse.records import BASELINES, Baselines, RunFolder
from unfuse.report.change import NOISE_THRESHOLD_PCT, Change, Side, change_between
from unfuse.report.markdown import change_markdown
from unfuse.report.terminal import print_change, print_line
from unfuse.report.text import printable

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


@click.command(short_help="Compare two runs, stage by stage.")
@click.argument("runs", nargs=-1, metavar="[A] B", type=click.Path(path_type=Path))
@click.option(
    "--fail-on-regression", type=_Percent(), default=None, help="Exit code 1 if a stage is slower by this percentage."
)
@click.option(
    "--noise-threshold",
    type=_Percent(),
    default=NOISE_THRESHOLD_PCT,
    show_default=True,
    help="Changes up to this percentage count as noise.",
)
@click.option("--format", "form", default="text", help="text, markdown (for a pull request) or json.")
@click.option("--baseline", metavar="NAME", default=None, help="Use this baseline instead of run A.")
@click.option(
    "--save-baseline", metavar="NAME", default=None, help="Save run B as a baseline; without A, compare nothing."
)
@click.option("--replace", is_flag=True, help="Let --save-baseline overwrite a baseline.")
@click.option("--list-baselines", is_flag=True, help="List the baselines, and compare nothing.")
@click.option(
    "--baseline-dir",
    type=click.Path(path_type=Path),
    default=BASELINES,
    show_default=True,
    help="Folder of the baselines.",
)
def compare(
    runs: tuple[Path, ...],
    fail_on_regression: float | None,
    noise_threshold: float,
    form: str,
    baseline: str | None,
    save_baseline: str | None,
    replace: bool,
    list_baselines: bool,
    baseline_dir: Path,
) -> int:
    """Compare run B with run A, or with a baseline, stage by stage."""
    if form not in _FORMATS:
        raise InputError("format", found=repr(form), expected=", ".join(_FORMATS))
    baselines = Baselines(baseline_dir)
    if list_baselines:
        return _list(baselines)
    pair = list(runs) if baseline is None else [baselines.find(baseline), *runs]
    only_save = save_baseline is not None and len(pair) == 1
    if len(pair) != 2 and not only_save:
        raise InputError(
            "compare",
            found=f"{len(runs)} run{'s' if len(runs) != 1 else ''}",
            expected="one run besides --baseline" if baseline is not None else "two runs",
            fix="run: unfuse compare A B, or unfuse compare --baseline NAME B",
        )
    if save_baseline is not None:
        baselines.check_free(save_baseline, replace=replace)
    elif replace:
        raise InputError("--replace", found="no --save-baseline", expected="the baseline to replace")
    if only_save and fail_on_regression is not None:
        raise InputError("--fail-on-regression", found="one run", expected="two runs, or one beside --baseline")
    code = 0
    if not only_save:
        before = _side(pair[0], f"baseline {baseline}" if baseline is not None else str(pair[0]))
        change = change_between(before, _side(pair[1], str(pair[1])), noise_threshold_pct=noise_threshold)
        _print(change, form)
        code = 0 if fail_on_regression is None else _judge(change, fail_on_regression)
    if save_baseline is not None:
        if code:
            click.echo(f"Baseline {save_baseline} is not saved.", err=True)
        else:
            folder = baselines.save(save_baseline, pair[-1], replace=replace)
            click.echo(f"Baseline {save_baseline}: {folder}", err=True)
    return code


def _side(path: Path, name: str) -> Side:
    run = RunFolder.open(path)
    records, probes = tuple(run.records()), run.read_probes()
    return Side(name=name, manifest=run.manifest, records=records, probes=probes, ended=run.ended)


def _list(baselines: Baselines) -> int:
    console = Console(highlight=False, soft_wrap=True)
    for name in baselines.names():
        try:
            manifest = RunFolder.open(baselines.find(name)).manifest
            about = f"{manifest.model.get('name')}, {manifest.protocol}, {manifest.created}"
        except RunFolderError as error:
            about = str(error)
        print_line(console, f"{name}: {printable(about)}")
    if not baselines.names():
        click.echo(f"No baselines in {baselines.folder}.", err=True)
    return 0


def _print(change: Change, form: str) -> None:
    if form == "json":
        click.echo(json.dumps(change.to_dict(), indent=1))
    elif form == "markdown":
        click.echo(change_markdown(change))
    else:
        print_change(Console(highlight=False, soft_wrap=True), change)


def _judge(change: Change, pct: float) -> int:
    """Return 1 if a stage is slower by ``pct`` %, if B failed and A did not, or if neither can be judged."""
    slower, unjudged = change.regressions(pct), change.unjudged()
    for stage in slower:
        click.echo(f"REGRESSION: {stage.stage} is {stage.pct:.1f} % slower", err=True)
    if change.broken:
        click.echo(f"REGRESSION: {len(change.broken)} samples that A measured failed in B", err=True)
    for reason in unjudged:
        click.echo(f"NOT JUDGED: {reason}", err=True)
    if change.noise_threshold_pct > pct:
        threshold = f"{change.noise_threshold_pct:.3g} %"
        click.echo(f"Changes up to {threshold} count as noise here, so {pct:g} % cannot be judged.", err=True)
    return 1 if slower or change.broken or unjudged else 0
