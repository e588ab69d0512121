"""Checks that the stages compute exactly the output of the fused ``generate``."""

from __future__ import annotations

from collections.abc import Callable

from unfuse.errors import CutError, FeaturesError, NonFiniteError
from unfuse.measure.timers import DeviceTimer, timer_for
from unfuse.records.verification_file import CheckResult
from unfuse.samples import Sample
from unfuse.staged_model import StagedModel
from unfuse.verification import checks
from unfuse.verification.golden import GoldenSet, golden
from unfuse.verification.hooks import hooks_agree
from unfuse.verification.result import Verification, judged, skipped
from unfuse.verification.same_output import same_output
from unfuse.verification.sampling import sampling
from unfuse.verification.scenes import scenes_apart
from unfuse.verification.speculation import speculation_equal
from unfuse.verification.steady import steady
from unfuse.verification.stored import store_hit
from unfuse.verification.timing import timing_additive
from unfuse.verification.work import work


def verify_model(
    model: StagedModel,
    sample: Sample,
    *others: Sample,
    max_new_tokens: int,
    reference: GoldenSet | None = None,
    timer: DeviceTimer | None = None,
    on_result: Callable[[CheckResult], None] | None = None,
) -> Verification:
    """Run every check on one model with one sample.

    Args:
        model: loaded.
        sample: its media have been checked.
        *others: further scenes for ``scenes-apart``, of any size; their media have been checked.
        max_new_tokens: number of tokens that are compared.
        reference: a golden set of the same checkpoint.
        timer: of the device; by default the timer of the model's device.
        on_result: called with the result of every check.
    """
    subject = checks.prepare_subject(model, sample, max_new_tokens)
    clock = timer or timer_for(model.device)
    all_checks: dict[str, Callable[[], CheckResult]] = {
        "encode-once": lambda: checks.encode_once(subject),
        "same-output": lambda: same_output(subject),
        "work": lambda: work(subject),
        "features-used": lambda: checks.features_used(subject),
        "scenes-apart": lambda: scenes_apart(subject, others),
        "store-hit": lambda: store_hit(subject),
        "golden": lambda: _golden(model, reference),
        "backward-compatible": lambda: checks.backward_compatible(subject),
        "sampling": lambda: sampling(subject),
        "speculation-equal": lambda: speculation_equal(subject),
        "timing-additive": lambda: timing_additive(model, sample, clock, max_new_tokens),
        "hooks-agree": lambda: hooks_agree(model, subject.prepared, clock),
        "steady": lambda: steady(model, sample, clock),
    }
    results: list[CheckResult] = []
    for name, check in all_checks.items():
        try:
            result = check()
        except CutError as error:
            result = skipped(name, str(error), expected="a model that can be split")
        except (FeaturesError, NonFiniteError) as error:
            result = judged(name, False, expected="the check to run", observed=str(error))
        results.append(result)
        if on_result:
            on_result(result)
    return Verification(model=model.name, results=tuple(results))


def _golden(model: StagedModel, reference: GoldenSet | None) -> CheckResult:
    if reference is None:
        return skipped("golden", "no golden set given (--golden DIR)", expected="equality with the published code")
    return golden(model, reference)


__all__ = ["CheckResult", "Verification", "verify_model"]
