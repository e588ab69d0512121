"""``unfuse verify``: proof that the stages compute what the whole computes."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from unfuse.adapters.registry import DEMO, check_model, load
from unfuse.cli.options import check_placement, placement
from unfuse.errors import InputError
from unfuse.report import print_line, printable
from unfuse.runs.verification_file import CheckRow, VerificationRecord, verification_place, write_verification

if TYPE_CHECKING:
    from unfuse.staged_model import StagedModel
    from unfuse.verification import Verification

_TOKENS = 48


@click.command(short_help="Prove that the stages compute what the model did.")
@click.argument("model", required=False)
@click.option("--dataset", default=None, help="Check on this dataset's first sample.")
@click.option("--events", type=click.Path(path_type=Path), default=None, help="Check on this recording.")
@click.option("--golden", type=click.Path(path_type=Path), default=None, help="Reference outputs of this checkpoint.")
@click.option("--max-new-tokens", type=int, default=_TOKENS, help="Tokens compared.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=None,
    help="Keep the rows: in the folder of a run of this model, for its report, or in a JSON file.",
)
@placement
def verify(
    model: str | None,
    dataset: str | None,
    events: Path | None,
    golden: Path | None,
    max_new_tokens: int,
    output: Path | None,
    device: str,
    dtype: str,
    engine: str,
) -> int:
    """Check MODEL (default: the built-in demo)."""
    console = Console(highlight=False, soft_wrap=True)
    if model is None:
        print_line(console, "No model given: using the built-in demo model.")
    return run_verify(
        console,
        model or DEMO,
        dataset,
        events=events,
        golden=golden,
        max_new_tokens=max_new_tokens,
        placement=(device, dtype, engine),
        output=output,
    )


def run_verify(
    console: Console,
    name: str,
    dataset: str | None,
    *,
    events: Path | None = None,
    golden: Path | None = None,
    max_new_tokens: int = _TOKENS,
    placement: tuple[str, str, str],
    output: Path | None = None,
) -> int:
    """Checks the input, then the model, and prints a block a check; returns the exit code."""
    place = verification_place(output) if output is not None else None
    ref = check_model(name)
    check_placement(*placement)
    if dataset is not None and events is not None:
        raise InputError("verify", found="--dataset and --events", expected="one of them")
    if max_new_tokens < 1:
        raise InputError("max-new-tokens", found=max_new_tokens, expected="at least 1")

    from unfuse.api import open_dataset
    from unfuse.samples import Dataset, Sample

    if events is not None:
        data = Dataset(name=str(events), samples=(Sample.from_events(events),))
    else:
        data = open_dataset(dataset, 1)
    data.check_media(events=ref.wants_events, video=not ref.wants_events)

    from unfuse.verification import CheckResult, verify_model
    from unfuse.verification.golden import read_golden

    reference = read_golden(golden) if golden is not None else None

    def show(result: CheckResult) -> None:
        print_line(console, f"{result.status.upper():5}{result.name}")
        print_line(console, f"     expected   {printable(result.expected)}")
        print_line(console, f"     observed   {printable(result.reason or result.observed)}")
        print_line(console, f"     tolerance  {result.tolerance}")

    device, dtype, engine = placement
    with load(name, device=device, dtype=dtype, engine=engine) as loaded:
        precision = str(loaded.dtype).removeprefix("torch.")
        print_line(console, f"{loaded.family} on {loaded.device}, {precision}, engine {loaded.engine.name}")
        for note in loaded.notes:
            print_line(console, f"Note: {printable(note)}")
        outcome = verify_model(
            loaded, data.samples[0], max_new_tokens=max_new_tokens, reference=reference, on_result=show
        )
        if place is not None:
            write_verification(place, _record(loaded, data.samples[0].sample_id, outcome))
    counts = {status: sum(r.status == status for r in outcome.results) for status in ("pass", "fail", "skip")}
    print_line(console, f"{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} skipped: {name}")
    if place is not None:
        print_line(console, f"Rows: {printable(str(place))}")
    return 0 if outcome.passed else 1


def _record(model: StagedModel, sample_id: str, outcome: Verification) -> VerificationRecord:
    from unfuse.protocols.bench import own_command

    return VerificationRecord(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=own_command(),
        model=model.name,
        fingerprint=model.fingerprint,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        engine=model.engine.name,
        sample_id=sample_id,
        rows=tuple(CheckRow(**asdict(result)) for result in outcome.results),
    )
