"""``verify``: check everything, then compare the stages with the model's own ``generate``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from unfuse.api.data import open_dataset
from unfuse.errors import InputError
from unfuse.loading import Placement, check_model
from unfuse.runs.verification_file import CheckRow, VerificationRecord, verification_place, write_verification
from unfuse.samples import Dataset, Sample
from unfuse.staged_model import StagedModel

if TYPE_CHECKING:
    from unfuse.verification import CheckResult, Verification

VERIFY_TOKENS: Final = 48


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyJob:
    """A verification whose input has been checked."""

    model: str | StagedModel
    sample: Sample
    reference: Any
    """Reference outputs of the checkpoint, or None."""
    max_new_tokens: int
    placement: Placement
    output: Path | None
    """Where the rows are written."""


def prepare_verify(
    model: str | StagedModel,
    dataset: str | Path | Dataset | None = None,
    *,
    events: Path | None = None,
    golden: str | Path | None = None,
    max_new_tokens: int = VERIFY_TOKENS,
    placement: Placement | None = None,
    output: Path | None = None,
) -> VerifyJob:
    """Check all input of a verification; loads nothing.

    Args:
        model: as for ``unfuse.verify``.
        dataset: whose first sample is checked; the demo recordings by default.
        events: a recording to check on, instead of a dataset.
        golden: as for ``unfuse.verify``.
        max_new_tokens: as for ``unfuse.verify``.
        placement: where the model is loaded; automatic by default.
        output: folder of a run of this model, or a JSON file, that the rows are written to.

    Raises:
        InputError: anything wrong with the model, the sample or an option.
    """
    place = verification_place(output) if output is not None else None
    wants_events = model.family == "eventgpt" if isinstance(model, StagedModel) else check_model(model).wants_events
    if dataset is not None and events is not None:
        raise InputError("verify", found="--dataset and --events", expected="one of them")
    if max_new_tokens < 1:
        raise InputError("max-new-tokens", found=max_new_tokens, expected="at least 1")
    if events is not None:
        data = Dataset(name=str(events), samples=(Sample.from_events(events),))
    else:
        data = open_dataset(dataset, 1)
    data.check_media(events=wants_events, video=not wants_events)

    # Imports torch, which wrong input need not wait for.
    from unfuse.verification.golden import read_golden

    return VerifyJob(
        model=model,
        sample=data.samples[0],
        reference=read_golden(golden) if golden is not None else None,
        max_new_tokens=max_new_tokens,
        placement=placement or Placement(),
        output=place,
    )


def run_verify(
    job: VerifyJob,
    *,
    on_model: Callable[[StagedModel], None] | None = None,
    on_result: Callable[[CheckResult], None] | None = None,
) -> Verification:
    """Load the model and run every check.

    Args:
        job: from ``prepare_verify``.
        on_model: called with the loaded model.
        on_result: called with the result of every check.
    """
    from unfuse.verification import verify_model

    given = job.model
    model = given if isinstance(given, StagedModel) else job.placement.load(given)
    try:
        if on_model is not None:
            on_model(model)
        outcome = verify_model(
            model, job.sample, max_new_tokens=job.max_new_tokens, reference=job.reference, on_result=on_result
        )
        if job.output is not None:
            write_verification(job.output, _record(model, job.sample.sample_id, outcome))
        return outcome
    finally:
        if model is not given:
            model.close()


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
