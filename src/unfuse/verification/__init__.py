"""Proof that the parts compute what the whole computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from unfuse.errors import FeaturesError
from unfuse.measure.timers import DeviceTimer, timer_for
from unfuse.samples import Sample
from unfuse.staged_model import StagedModel
from unfuse.verification import checks
from unfuse.verification.golden import GoldenSet, golden
from unfuse.verification.result import CheckResult, Verification, judged, skipped
from unfuse.verification.timing import timing_additive

_CHECKS: Final[dict[str, Callable[[checks.Subject], CheckResult]]] = {
    "encode-once": checks.encode_once,
    "same-output": checks.same_output,
    "features-used": checks.features_used,
    "backward-compatible": checks.backward_compatible,
}


def verify_model(
    model: StagedModel,
    sample: Sample,
    *,
    max_new_tokens: int,
    reference: GoldenSet | None = None,
    timer: DeviceTimer | None = None,
    on_result: Callable[[CheckResult], None] | None = None,
) -> Verification:
    """Runs every check on one model with one sample.

    Args:
        model: loaded.
        sample: its media have been checked.
        max_new_tokens: tokens compared.
        reference: a golden set of this very checkpoint.
        timer: of the device; the model's own by default.
        on_result: called with each row as it is known.
    """
    prepared = checks.subject(model, sample, max_new_tokens)
    results: list[CheckResult] = []

    def add(result: CheckResult) -> None:
        results.append(result)
        if on_result:
            on_result(result)

    for name, check in _CHECKS.items():
        try:
            add(check(prepared))
        except FeaturesError as error:
            add(judged(name, False, expected="the check to run", observed=str(error)))
    if reference is None:
        add(skipped("golden", "no golden set given (--golden DIR)", expected="equality with the published code"))
    else:
        add(golden(model, reference))
    add(timing_additive(model, sample, timer or timer_for(model.device), max_new_tokens))
    return Verification(model=model.name, results=tuple(results))


__all__ = ["CheckResult", "Verification", "verify_model"]
