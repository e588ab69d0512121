"""``unfuse run``: answer a whole dataset."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import click
from rich.console import Console
from rich.progress import TextColumn

from unfuse.batch_inference.cluster.settings import LOCAL
from unfuse.cli.interrupts import command_line, on_interrupt, say_interrupted
from unfuse.cli.options import open_store, placement_options, store_options
from unfuse.loading import DEMO, Placement, check_model
from unfuse.report import print_line, printable
from unfuse.report.progress import counting_bar

if TYPE_CHECKING:
    from unfuse.batch_inference.device import DeviceFacts
    from unfuse.batch_inference.job import RunJob
    from unfuse.records.answers_file import AnswerRecord

_LINE_EVERY_S: Final = 10.0
"""Between lines of progress if output is not a terminal."""
_DRAW_EVERY_S: Final = 0.1
"""Between drawings of the bar at a terminal."""


@click.command(name="run", short_help="Answer a whole dataset as fast as possible.")
@click.argument("model", required=False)
@click.option("--dataset", default=None, help="Folder in the instruction-set layout; default: the demo recordings.")
@click.option("--max-samples", type=int, default=None, help="Only the first N samples.")
@placement_options
@click.option(
    "--devices", default=None, help="One process per device: auto (all GPUs), a number, or names separated by commas."
)
@click.option("--max-new-tokens", type=int, default=None, help="Default: 512; 64 for the demo model.")
@click.option("--output-length", type=int, default=None, help="Exactly N new tokens for every sample.")
@click.option("--temperature", type=float, default=0.0, help="0 is greedy.")
@click.option("--seed", type=int, default=0, help="For sampled answers.")
@click.option(
    "--questions",
    type=click.Path(path_type=Path),
    default=None,
    help="File with one question per line; they replace the scenes' own questions.",
)
@store_options
@click.option("--workers", type=int, default=None, help="Processes that load and preprocess; 0: none. Default: auto.")
@click.option(
    "--capacity", type=int, default=None, help="Answers that are decoded together; default: the engine's choice."
)
@click.option("--encode-batch", type=int, default=8, help="Scenes that are encoded together.")
@click.option(
    "--scene-seconds",
    type=float,
    default=None,
    help="Time limit of a worker process for one scene; default: 600.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=None,
    help="Run folder; default: runs/<time>-<model>-answers.",
)
@click.option("--resume", is_flag=True, help="Continue the run in --output, and try failed samples again.")
@click.option(
    "--ray",
    is_flag=False,
    flag_value=LOCAL,
    default=None,
    metavar="[ADDRESS]",
    help="Run on a Ray cluster: auto or HOST:PORT; without an address, a local cluster.",
)
@click.option(
    "--ray-pools",
    default=None,
    help="Actors per stage, such as load=4,preprocess=2-8,encode=1,answer=1; default: auto.",
)
def run_verb(
    model: str | None,
    dataset: str | None,
    max_samples: int | None,
    placement: Placement,
    devices: str | None,
    questions: Path | None,
    store: Path | None,
    store_gib: float | None,
    output: Path | None,
    resume: bool,
    ray: str | None,
    ray_pools: str | None,
    **settings: Any,
) -> int:
    """Answer a whole dataset with MODEL (default: the built-in demo), as fast as the hardware allows."""
    console = Console(highlight=False, soft_wrap=True)
    if model is None:
        print_line(console, "No model given: using the built-in demo model.")
        model = DEMO
    check_model(model)
    settings["store"] = open_store(store, store_gib)

    from unfuse.api.answering import AnsweringOptions, prepare_run
    from unfuse.samples.text_file import read_questions

    lines = None if questions is None else read_questions(questions)
    options = AnsweringOptions(
        dataset=dataset, questions=lines, max_samples=max_samples, placement=placement, devices=devices,
        output=output, resume=resume, ray=ray, ray_pools=ray_pools, settings=settings,
    )  # fmt: skip
    return _run_and_show(console, prepare_run(model, options), model)


def _run_and_show(console: Console, job: RunJob, model: str) -> int:
    from unfuse.api.answering import run_answers
    from unfuse.records.manifest import MANIFEST_FILE

    rows, data = len(job.work.rows), job.work.dataset
    print_line(console, f"Loading {model} to answer {rows} questions about {data.name} ...")
    for note in job.work.notes:
        print_line(console, f"Note: {note}")
    answered, again = (
        _Answered(console),
        command_line(click.get_current_context(), output=str(job.output), resume=True, model=model),
    )

    def stopped() -> list[str]:
        if not (job.output / MANIFEST_FILE).is_file():
            return ["Stopped before the first answer."]
        kept = f"Stopped. {answered.count} answers of this process are kept in {job.output}."
        return [printable(kept), f"Go on with: {again}"]

    on_interrupt(stopped)
    try:
        with _terminable(), answered:
            run = run_answers(job, on_ready=answered.ready, on_answer=answered.answer)
    except _TerminatedError:
        say_interrupted()
        return 143
    for line in run.summary().lines():
        print_line(console, printable(line))
    print_line(console, f"Answers: {job.output / 'answers.jsonl'}")
    return 1 if run.summary().failed else 0


class _TerminatedError(KeyboardInterrupt):
    """SIGTERM, handled like Ctrl-C except for the exit code."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the run like Ctrl-C: finished answers stay on the disk."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise _TerminatedError

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Answered:
    """A bar at a terminal, a line now and then elsewhere; failures always. Answers come from another thread."""

    def __init__(self, console: Console):
        self.count = 0
        self._console = console
        self._started = self._shown = time.monotonic()
        self._bar = counting_bar(console, TextColumn("{task.fields[rate]}"))
        self._task = self._bar.add_task("answers", total=None, rate="", visible=False)
        self._left = 0

    def ready(self, facts: DeviceFacts, left: int) -> None:
        """Print the facts of the device once the model is loaded."""
        model = facts.model
        for note in model["notes"]:
            print_line(self._console, f"Note: {printable(note)}")
        where = f"{model['family']} on {model['device']}, {model['dtype']}, engine {model['engine']}"
        workers = "1 worker" if facts.workers == 1 else f"{facts.workers} workers"
        print_line(self._console, f"{where}; {workers}, {facts.capacity} answers at a time")
        if cluster := facts.environment.get("ray"):
            nodes = "1 node" if cluster["nodes"] == 1 else f"{cluster['nodes']} nodes"
            pools = ", ".join(f"{name} {size}" for name, size in cluster["pools"].items())
            print_line(self._console, f"Ray {cluster['version']}, {nodes}; actors: {pools}")
        self._left = left
        self._started = self._shown = time.monotonic()
        self._bar.update(self._task, total=left, visible=True, refresh=True)

    def answer(self, record: AnswerRecord) -> None:
        """Count an answer that is on the disk."""
        self.count += 1
        if record.status == "failed":
            print_line(self._console, f"Failed: {printable(record.sample_id)}: {printable(record.error or '')}")
        now = time.monotonic()
        if now - self._shown < (_LINE_EVERY_S if self._bar.disable else _DRAW_EVERY_S):
            return
        self._shown = now
        rate = f"{self.count / (now - self._started):.1f}/s"
        self._bar.update(self._task, completed=self.count, rate=rate, refresh=True)
        if self._bar.disable:
            print_line(self._console, f"{self.count} of {self._left} answers, {rate}")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()
