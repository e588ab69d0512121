"""``unfuse verify``: check the stages against the model's own ``generate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from unfuse.cli.options import placement_options
from unfuse.loading import DEMO, Placement, check_model
from unfuse.report import print_line, printable

if TYPE_CHECKING:
    from unfuse.staged_model import StagedModel
    from unfuse.verification import CheckResult, Verification

_TOKENS = 48


@click.command(short_help="Check that the stages compute the model's own output.")
@click.argument("model", required=False)
@click.option("--dataset", default=None, help="Check on this dataset's first sample.")
@click.option("--events", type=click.Path(path_type=Path), default=None, help="Check on this recording.")
@click.option("--golden", type=click.Path(path_type=Path), default=None, help="Reference outputs of this checkpoint.")
@click.option("--max-new-tokens", type=int, default=_TOKENS, help="Number of tokens to compare.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=None,
    help="Write the checks into the folder of a run of this model, for its report, or into a JSON file.",
)
@placement_options
def verify(model: str | None, placement: Placement, **given: Any) -> int:
    """Check MODEL (default: the built-in demo)."""
    console = Console(highlight=False, soft_wrap=True)
    if model is None:
        print_line(console, "No model given: using the built-in demo model.")
    return show_verify(console, model or DEMO, placement=placement, **given)


def show_verify(console: Console, name: str, **given: Any) -> int:
    """Check the input, then the model, and print a block for each check; return the exit code.

    Args:
        console: prints the checks.
        name: of the model.
        **given: fields of ``VerifyOptions``.
    """
    check_model(name)  # before anything large is imported

    from unfuse.api.verifying import VerifyOptions, prepare_verify, run_verify

    job = prepare_verify(name, VerifyOptions(**given))

    def print_model(loaded: StagedModel) -> None:
        precision = str(loaded.dtype).removeprefix("torch.")
        print_line(console, f"{loaded.family} on {loaded.device}, {precision}, engine {loaded.engine.name}")
        for note in loaded.notes:
            print_line(console, f"Note: {printable(note)}")

    def print_check(result: CheckResult) -> None:
        print_line(console, f"{result.status.upper()} {result.name}")
        print_line(console, f"     expected   {printable(result.expected)}")
        print_line(console, f"     observed   {printable(result.reason or result.observed)}")
        print_line(console, f"     tolerance  {result.tolerance}")

    outcome = run_verify(job, on_model=print_model, on_result=print_check)
    print_line(console, f"{_counts(outcome)}: {name}")
    if job.output is not None:
        print_line(console, f"Rows: {printable(str(job.output))}")
    return 0 if outcome.passed else 1


def _counts(outcome: Verification) -> str:
    """Return how many checks came out in each way."""
    words = {"pass": "passed", "fail": "failed", "skip": "skipped", "inconclusive": "inconclusive"}
    counts = {status: sum(r.status == status for r in outcome.results) for status in words}
    return ", ".join(f"{counts[s]} {word}" for s, word in words.items() if counts[s] or s != "inconclusive")
