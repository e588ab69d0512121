"""``verify``: check everything, then compare the stages with the model's own ``generate``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from unfuse.api.defaults import open_dataset
from unfuse.errors import InputError
from unfuse.loading import Placement, check_model
from unfuse.records.verification_file import VerificationRecord, verification_path, write_verification
from unfuse.samples import Dataset, Sample
from unfuse.staged_model import StagedModel

if TYPE_CHECKING:
    from unfuse.records.verification_file import CheckResult
    from unfuse.verification import Verification

VERIFY_TOKENS: Final = 48


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyOptions:
    """Options of a verification, as for ``unfuse.verify``."""

    dataset: str | Path | Dataset | None = None
    """Its first sample is checked, and its second one beside it; the demo recordings by default."""
    events: Path | None = None
    """Recording to check on, instead of a dataset."""
    golden: str | Path | None = None
    max_new_tokens: int = VERIFY_TOKENS
    placement: Placement = field(default_factory=Placement)
    output: Path | None = None
    """Folder of a run of this model, or a JSON file, for the rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyJob:
    """A verification with checked input."""

    model: str | StagedModel
    sample: Sample
    others: tuple[Sample, ...]
    """Other scenes of the dataset, with readable media."""
    reference: Any
    """Reference outputs of the checkpoint, or None."""
    max_new_tokens: int
    placement: Placement
    output: Path | None
    """Output path of the rows."""


def prepare_verify(model: str | StagedModel, options: VerifyOptions | None = None) -> VerifyJob:
    """Check all input of a verification; load nothing.

    Args:
        model: a name, or a loaded model.
        options: the options; each has a default.

    Raises:
        InputError: anything wrong with the model, the sample or an option.
    """
    given = options or VerifyOptions()
    output = verification_path(given.output) if given.output is not None else None
    wants_events = (
        model.adapter.takes == "events" if isinstance(model, StagedModel) else check_model(model).wants_events
    )
    if given.dataset is not None and given.events is not None:
        raise InputError("verify", found="dataset and events", expected="one of the two")
    if given.max_new_tokens < 1:
        raise InputError("max-new-tokens", found=given.max_new_tokens, expected="at least 1")
    if given.events is not None:
        data = Dataset(name=str(given.events), samples=(Sample.from_events(given.events),))
    else:
        data = open_dataset(given.dataset, 2)
    first, *others = (Dataset(name=data.name, samples=(sample,)) for sample in data.samples)
    first.check_media(events=wants_events, video=not wants_events)

    # Imports torch (seconds), so wrong input is reported before.
    from unfuse.verification.golden import read_golden

    return VerifyJob(
        model=model,
        sample=data.samples[0],
        others=tuple(_readable(others, wants_events)),
        reference=read_golden(given.golden) if given.golden is not None else None,
        max_new_tokens=given.max_new_tokens,
        placement=given.placement,
        output=output,
    )


def _readable(datasets: Sequence[Dataset], wants_events: bool) -> Iterator[Sample]:
    """Yield the samples of datasets with readable media."""
    for data in datasets:
        with contextlib.suppress(InputError):
            data.check_media(events=wants_events, video=not wants_events)
            yield from data.samples


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
            model,
            job.sample,
            *job.others,
            max_new_tokens=job.max_new_tokens,
            reference=job.reference,
            on_result=on_result,
        )
        if job.output is not None:
            write_verification(job.output, _record(model, job.sample.sample_id, outcome))
        return outcome
    finally:
        if model is not given:
            model.close()


def _record(model: StagedModel, sample_id: str, outcome: Verification) -> VerificationRecord:
    from unfuse.benchmarking.manifest import own_command

    return VerificationRecord(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=own_command(),
        model=model.name,
        fingerprint=model.fingerprint,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        engine=model.engine.name,
        sample_id=sample_id,
        rows=outcome.results,
    )
