"""``unfuse bench``: time the stages of models."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from unfuse.cli.interrupts import command_line, on_interrupt
from unfuse.cli.options import placement_options
from unfuse.loading import DEMO, Placement, check_model
from unfuse.records import SampleRecord
from unfuse.records.manifest import COMPARISON_FILE, MANIFEST_FILE
from unfuse.records.run_dir import HTML_FILE
from unfuse.report import LiveView, print_comparison, print_line, print_summary, printable, sample_line
from unfuse.speculation.settings import parse_draft_tokens

if TYPE_CHECKING:
    from unfuse.api.benchmarking import BenchJob
    from unfuse.samples import Dataset
    from unfuse.staged_model import StagedModel


@click.command(short_help="Time each stage of a model, or of several.")
@click.argument("models", nargs=-1, metavar="[MODEL ...]")
@click.option("--dataset", default=None, help="Folder in the instruction-set layout; default: the demo recordings.")
@click.option("--max-samples", type=int, default=None, help="Only the first N samples.")
@placement_options
@click.option("--speculate", default="off", help="Draft tokens from: history, ngram, auto, or off.")
@click.option("--draft-tokens", default="auto", help="Most drafted tokens of a decode pass: auto, or 1 to 15.")
@click.option("--history", type=click.Path(path_type=Path), metavar="FILE", help="Also draft from the answers in FILE.")
@click.option("--protocol", default="decoupled", help="decoupled, fused, hooked, reencode (a control) or all.")
@click.option("--max-new-tokens", type=int, default=None, help="Default: 512; 64 for the demo model.")
@click.option(
    "--output-length",
    type=int,
    default=None,
    help="Exactly N new tokens for every sample (equal work); default for several models: 46.",
)
@click.option("--temperature", type=float, default=0.0, help="0 is greedy.")
@click.option("--seed", type=int, default=0, help="For sampled runs.")
@click.option("--num-warmups", type=int, default=2, help="Warm-up repeats at least, per input shape.")
@click.option("--balance-seconds", type=float, default=15.0, help="Time that repeats for the balance may take.")
@click.option("--energy-seconds", type=float, default=2.0, help="Time for the energy of each stage; 0: none.")
@click.option("--profile", is_flag=True, help="Also write profile.json: one sample under torch's profiler.")
@click.option("--strict", is_flag=True, help="Refuse to run beside other work; INVALID if other work begins later.")
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
    placement: Placement,
    protocol: str,
    output: Path | None,
    resume: bool,
    draft_tokens: str,
    **settings: Any,
) -> int:
    """Time each stage of MODEL (default: the built-in demo) on a dataset; several models are compared."""
    console = Console(highlight=False, soft_wrap=True)
    if not models:
        print_line(console, "No model given: using the built-in demo model.")
        models = (DEMO,)
    folder = output if output is not None or resume else default_folder(models)
    return show_bench(
        console, models, dataset=dataset, placement=placement, protocol=protocol, max_samples=max_samples,
        output=folder, resume=resume, settings={**settings, "draft_tokens": parse_draft_tokens(draft_tokens)},
    )  # fmt: skip


def show_bench(console: Console, models: Sequence[str], *, show_answers: bool = False, **given: Any) -> int:
    """Check the input, run the benchmark and print it; return the exit code.

    Args:
        console: prints the benchmark.
        models: names.
        show_answers: print every sample's question and answer as well.
        **given: fields of ``BenchOptions``.
    """
    for name in models:  # before anything large is imported
        check_model(name)

    from unfuse.api.benchmarking import BenchOptions, prepare_bench

    def checking(data: Dataset) -> None:
        print_line(console, f"Checking {len(data.samples)} samples of {data.name} ...")
        for note in data.notes:
            print_line(console, f"Note: {note}")

    job = prepare_bench(models, BenchOptions(**given), on_check=checking)
    return run_and_show(console, job, show_answers=show_answers)


def run_and_show(console: Console, job: BenchJob, *, show_answers: bool = False) -> int:
    """Run a benchmark, print its progress and result, and return the exit code."""
    from unfuse.api.benchmarking import run_bench
    from unfuse.benchmarking import ComparisonRun

    plan, data, length = job.plan, job.data, job.settings.output_length
    if len(plan.models) > 1 and length is not None:
        print_line(console, f"Every model writes {length} new tokens per sample.")
    view = LiveView(
        console,
        samples=len(data.samples),
        parts=len(plan.models) * len(plan.protocols),
        repeats_s=job.settings.balance_seconds,
    )
    listener = _printer(console, view, job, show_answers)
    on_interrupt(partial(_stopped, job, click.get_current_context(silent=True)))
    with view:
        run = run_bench(job, listener)
    if isinstance(run, ComparisonRun):
        print_comparison(console, run.result)
        valid = run.result.valid
    else:
        print_summary(console, f"{plan.models[0]}: {plan.protocols[0]}, {len(data.samples)} samples", run.result)
        valid = run.result.verdict.valid
    if job.output is not None:
        if plan.single:
            print_line(console, f"Trace: {job.output / 'trace.json'} (open it at ui.perfetto.dev)")
        print_line(console, f"Run folder: {job.output}")
        print_line(console, f"Report: {job.output / HTML_FILE}")
    return 0 if valid else 1


def _stopped(job: BenchJob, context: click.Context | None) -> list[str]:
    """Return how to continue an interrupted benchmark."""
    started = job.output is not None and any((job.output / name).is_file() for name in (MANIFEST_FILE, COMPARISON_FILE))
    if not started:
        return ["Stopped before the first sample."]
    kept = f"Stopped. Finished samples are kept in {printable(str(job.output))}."
    if context is None:
        return [kept]
    again = command_line(context, output=str(job.output), resume=True, models=job.plan.models)
    return [kept, f"Go on with: {again}"]


def _printer(console: Console, view: LiveView, job: BenchJob, show_answers: bool) -> Any:
    from unfuse.benchmarking import BenchListener

    class Printer(BenchListener):
        """Printed lines and the live view of a benchmark."""

        protocol = job.plan.protocols[0]

        def loading(self, name: str) -> None:
            print_line(console, f"Loading {name} ...")

        def loaded(self, model: StagedModel) -> None:
            for note in model.notes:
                print_line(console, f"Note: {printable(note)}")
            precision = str(model.dtype).removeprefix("torch.")
            print_line(console, f"{model.family} on {model.device}, {precision}, engine {model.engine.name}")

        def part(self, model: str, protocol: str, event: str) -> None:
            self.protocol = protocol or self.protocol
            if not job.plan.single:
                print_line(console, f"\n{printable(model)}, {protocol}: {printable(event)}")
            view.begin(model, protocol)

        def record(self, index: int, record: SampleRecord) -> None:
            lines = [] if record.warmup else [sample_line(index, record, self.protocol)]
            if show_answers and not record.warmup and record.text is not None:
                lines += [f"  Q: {printable(record.question or '')}", f"  A: {printable(record.text)}"]
            view.show(index, record, *lines)

        def warning(self, text: str) -> None:
            print_line(console, f"Warning: {printable(text)}")

    return Printer()


def default_folder(models: Sequence[str]) -> Path:
    """Return a new folder under ``runs``, named after the time and the first model."""
    first = Path(models[0]).name.replace(":", "-")
    label = first if len(models) == 1 else f"{first}-and-{len(models) - 1}-more"
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{label}"
