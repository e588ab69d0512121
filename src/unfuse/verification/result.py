"""Results of a verification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from unfuse.errors import VerificationError
from unfuse.records.verification_file import CheckResult, CheckStatus

TimedOutcome = Literal["pass", "fail", "inconclusive"]
REMEDY: Final = "run again on a machine without other work"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """The results of all checks of one model."""

    model: str
    results: tuple[CheckResult, ...]

    @property
    def failed(self) -> tuple[CheckResult, ...]:
        """Checks that failed."""
        return tuple(result for result in self.results if result.status == "fail")

    @property
    def passed(self) -> bool:
        """True if no check failed and at least one was judged."""
        return not self.failed and any(result.status == "pass" for result in self.results)

    def raise_if_failed(self) -> None:
        """Raise an error if ``passed`` is false.

        Raises:
            VerificationError: names the failed checks.
        """
        if not self.passed:
            rows = "; ".join(f"{r.name}: {r.observed}, expected {r.expected}" for r in self.failed)
            raise VerificationError(
                f"verify {self.model}", found=rows or "nothing judged", expected="every check to pass"
            )


def judged(name: str, ok: bool, *, expected: str, observed: str, tolerance: str = "exact") -> CheckResult:
    """Return the result of a check that passes or fails."""
    status: CheckStatus = "pass" if ok else "fail"
    return CheckResult(name=name, status=status, expected=expected, observed=observed, tolerance=tolerance)


def timed(name: str, outcome: TimedOutcome, *, expected: str, observed: str, tolerance: str) -> CheckResult:
    """Return the result of a check that reads a clock: it passes, it fails, or noise hides the answer."""
    reason = None if outcome != "inconclusive" else f"{observed}: noise hides the answer; {REMEDY}"
    return CheckResult(
        name=name, status=outcome, expected=expected, observed=observed, tolerance=tolerance, reason=reason
    )


def skipped(name: str, reason: str, *, expected: str) -> CheckResult:
    """Return the result of a check that was not judged."""
    return CheckResult(name=name, status="skip", expected=expected, observed="not run", reason=reason)
