"""``unfuse bench``: the main job."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from unfuse.adapters.registry import DEMO, load
from unfuse.cli.options import check_placement, placement
from unfuse.errors import InputError
from unfuse.report import LiveView, print_comparison, print_line, print_summary, printable, sample_line
from unfuse.runs import SampleRecord, read_comparison, read_manifest, refuse_occupied
from unfuse.runs.place import HTML_FILE

if TYPE_CHECKING:
    from unfuse.api import BenchPlan
    from unfuse.protocols import BenchSettings
    from unfuse.samples import Dataset
    from unfuse.staged_model import StagedModel


@click.command(short_help="Time each stage of a model, or of several.")
@click.argument("models", nargs=-1, metavar="[MODEL ...]")
@click.option("--dataset", default=None, help="Folder in the instruction-set layout; default: the demo recordings.")
@click.option("--max-samples", type=int, default=None, help="Only the first N samples.")
@placement
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
@click.option("--strict", is_flag=True, help="Refuse to run beside other work; INVALID where it begins later.")
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
    output: Path | None,
    resume: bool,
    **settings: Any,
) -> int:
    """Time each stage of MODEL (default: the built-in demo) on a dataset; several models are compared."""
    console = Console(highlight=False, soft_wrap=True)
    if not models:
        print_line(console, "No model given: using the built-in demo model.")
    return run_bench(
        console,
        models or (DEMO,),
        dataset,
        max_samples=max_samples,
        placement=(device, dtype, engine),
        protocol=protocol,
        output=output,
        resume=resume,
        settings=settings,
    )


def run_bench(
    console: Console,
    names: Sequence[str],
    dataset: str | None,
    *,
    max_samples: int | None = None,
    placement: tuple[str, str, str] = ("auto", "auto", "auto"),
    protocol: str = "decoupled",
    output: Path | None = None,
    resume: bool = False,
    settings: dict[str, Any] | None = None,
    show_answers: bool = False,
) -> int:
    """Checks everything, then loads, measures and prints; returns the exit code."""
    check_placement(*placement)
    _check_names(names)

    from unfuse.api import open_dataset, plan_bench

    plan = plan_bench(names, protocol)
    folder = output or Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{_label(plan)}"
    if resume:
        if output is None:
            raise InputError("--resume", found="no --output", expected="the folder of the run to continue")
        _ = read_manifest(folder) if plan.single else read_comparison(folder)
    else:
        refuse_occupied(folder)
    options = plan.settings(**(settings or {}))
    data = open_dataset(dataset, max_samples)
    print_line(console, f"Checking {len(data.samples)} samples of {data.name} ...")
    data.check_media(events=plan.events, video=plan.video)
    job = _Job(console, plan, options, data, placement, folder, resume, show_answers)
    code = job.one() if plan.single else job.several()
    print_line(console, f"Run folder: {folder}")
    print_line(console, f"Report: {folder / HTML_FILE}")
    return code


class _Job:
    def __init__(
        self,
        console: Console,
        plan: BenchPlan,
        options: BenchSettings,
        data: Dataset,
        placement: tuple[str, str, str],
        folder: Path,
        resume: bool,
        show_answers: bool,
    ):
        self.console = console
        self.plan = plan
        self.options = options
        self.data = data
        self.placement = placement
        self.folder = folder
        self.resume = resume
        self.show_answers = show_answers
        self.protocol = plan.protocols[0]
        self.view = LiveView(
            console,
            samples=len(data.samples),
            parts=len(plan.models) * len(plan.protocols),
            repeats_s=options.balance_seconds,
        )

    def one(self) -> int:
        """One model under one protocol."""
        from unfuse.protocols import bench_model

        name = self.plan.models[0]
        with self._load(name) as model, self.view:
            self.view.begin(name, self.protocol)
            run = bench_model(
                model,
                self.data,
                self.options,
                protocol=self.protocol,
                output=self.folder,
                resume=self.resume,
                on_record=self._show,
                on_warning=self._warn,
            )
        print_summary(self.console, f"{name}: {self.protocol}, {len(self.data.samples)} samples", run.result)
        print_line(self.console, f"Trace: {self.folder / 'trace.json'} (open it at ui.perfetto.dev)")
        return 0 if run.result.verdict.valid else 1

    def several(self) -> int:
        """Several models, or one under several protocols."""
        from unfuse.protocols import bench_several

        if len(self.plan.models) > 1 and self.options.output_length is not None:
            print_line(
                self.console, f"Every model writes {self.options.output_length} new tokens a sample: equal work."
            )

        def tell(model: str, protocol: str, what: str) -> None:
            self.protocol = protocol or self.protocol
            if what != "loading":
                print_line(self.console, f"\n{printable(model)}, {protocol}: {printable(what)}")
                self.view.begin(model, protocol)

        with self.view:
            run = bench_several(
                self.plan.models,
                self.plan.protocols,
                self._load,
                self.data,
                self.options,
                placement=self.placement,
                output=self.folder,
                resume=self.resume,
                on_part=tell,
                on_record=self._show,
                on_warning=self._warn,
            )
        print_comparison(self.console, run.result)
        return 0 if run.result.valid else 1

    def _warn(self, text: str) -> None:
        print_line(self.console, f"Warning: {printable(text)}")

    def _load(self, name: str) -> StagedModel:
        print_line(self.console, f"Loading {name} ...")
        device, dtype, engine = self.placement
        model = load(name, device=device, dtype=dtype, engine=engine)
        for note in model.notes:
            print_line(self.console, f"Note: {printable(note)}")
        precision = str(model.dtype).removeprefix("torch.")
        print_line(self.console, f"{model.family} on {model.device}, {precision}, engine {model.engine.name}")
        return model

    def _show(self, index: int, record: SampleRecord) -> None:
        lines = [] if record.warmup else [sample_line(index, record, self.protocol)]
        if self.show_answers and not record.warmup and record.text is not None:
            lines += [f"  Q: {printable(record.question or '')}", f"  A: {printable(record.text)}"]
        self.view.show(index, record, *lines)


def _check_names(names: Sequence[str]) -> None:
    """Names are checked before anything large is imported."""
    from unfuse.adapters.registry import check_model

    for name in names:
        check_model(name)


def _label(plan: BenchPlan) -> str:
    first = Path(plan.models[0]).name.replace(":", "-")
    return first if len(plan.models) == 1 else f"{first}-and-{len(plan.models) - 1}-more"
