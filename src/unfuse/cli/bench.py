"""``unfuse bench``: stage times of a model on a dataset."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from unfuse.adapters.registry import DEMO, check_model, load
from unfuse.cli.options import check_placement, placement
from unfuse.errors import InputError
from unfuse.report import print_line, print_summary, sample_line
from unfuse.report.terminal import printable
from unfuse.runs import SampleRecord, read_manifest, refuse_occupied


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL]")
@click.option("--dataset", default=None, help="Folder in the instruction-set layout; default: the demo recordings.")
@click.option("--max-samples", type=int, default=None, help="Only the first N samples.")
@placement
@click.option("--protocol", default="decoupled", help="decoupled.")
@click.option("--max-new-tokens", type=int, default=None, help="Default: 512; 64 for the demo model.")
@click.option("--output-length", type=int, default=None, help="Exactly N new tokens for every sample (equal work).")
@click.option("--temperature", type=float, default=0.0, help="0 is greedy.")
@click.option("--seed", type=int, default=0, help="For sampled runs.")
@click.option("--num-warmups", type=int, default=2, help="Warm-up repeats at least, per input shape.")
@click.option("--balance-seconds", type=float, default=15.0, help="Time that repeats for the balance may take.")
@click.option("--reuse", is_flag=True, help="Allow KV prefixes to be reused between samples.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=None,
    help="Run folder; default: runs/<time>-<model>.",
)
@click.option("--resume", is_flag=True, help="Continue the run in --output.")
def bench(
    models: tuple[str, ...],
    dataset: str | None,
    max_samples: int | None,
    device: str,
    dtype: str,
    engine: str,
    protocol: str,
    max_new_tokens: int | None,
    output: Path | None,
    resume: bool,
    **settings: Any,
) -> int:
    """Time each stage of MODEL (default: the built-in demo) on a dataset."""
    if len(models) > 1:
        raise InputError("MODEL", found=f"{len(models)} models", expected="one a run")
    model = models[0] if models else DEMO
    console = Console(highlight=False, soft_wrap=True)
    if not models:
        print_line(console, "No model given: using the built-in demo model.")
    return run_bench(
        console,
        model,
        dataset,
        max_samples=max_samples,
        placement=(device, dtype, engine),
        protocol=protocol,
        max_new_tokens=max_new_tokens,
        output=output,
        resume=resume,
        settings=settings,
    )


def run_bench(
    console: Console,
    name: str,
    dataset: str | None,
    *,
    max_samples: int | None = None,
    placement: tuple[str, str, str] = ("auto", "auto", "auto"),
    protocol: str = "decoupled",
    max_new_tokens: int | None = None,
    output: Path | None = None,
    resume: bool = False,
    settings: dict[str, Any] | None = None,
    show_answers: bool = False,
) -> int:
    """Checks everything, then loads, measures and prints; returns the exit code."""
    if protocol != "decoupled":
        raise InputError("protocol", found=repr(protocol), expected="decoupled")
    check_model(name)
    check_placement(*placement)
    folder = output or Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{Path(name).name.replace(':', '-')}"
    if resume:
        if output is None:
            raise InputError("--resume", found="no --output", expected="the folder of the run to continue")
        read_manifest(folder)
    else:
        refuse_occupied(folder)

    from unfuse.api import default_tokens, open_dataset
    from unfuse.protocols import BenchSettings, bench_model

    tokens = default_tokens(name) if max_new_tokens is None else max_new_tokens
    options = BenchSettings(max_new_tokens=tokens, **(settings or {}))
    data = open_dataset(dataset, max_samples)
    print_line(console, f"Checking {len(data.samples)} samples of {data.name} ...")
    data.check_media()
    print_line(console, f"Loading {name} ...")
    device, dtype, engine = placement
    model = load(name, device=device, dtype=dtype, engine=engine)
    for note in model.adapter.notes:
        print_line(console, f"Note: {note}")
    print_line(
        console,
        f"{model.family} on {model.device}, {str(model.dtype).removeprefix('torch.')}, engine {model.engine.name}",
    )
    with model, _progress(console) as progress:
        bar = progress.add_task("samples", total=len(data.samples))

        def show(index: int, record: SampleRecord) -> None:
            if not record.warmup:
                print_line(console, sample_line(index, record))
                if show_answers and record.text is not None:
                    print_line(console, f"  Q: {printable(record.question or '')}")
                    print_line(console, f"  A: {printable(record.text)}")
                progress.update(bar, completed=index + 1)

        run = bench_model(model, data, options, output=folder, resume=resume, on_record=show)
        progress.update(bar, completed=len(data.samples))
    print_summary(console, f"{name}: {protocol}, {len(data.samples)} samples", run.result)
    print_line(console, f"Run folder: {folder}")
    return 0 if run.result.verdict.valid else 1


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
