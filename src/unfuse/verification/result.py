"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unfuse.errors import VerificationError

Status = Literal["pass", "fail", "skip"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult:
    """One row of ``unfuse verify``."""

    name: str
    status: Status
    expected: str
    observed: str
    tolerance: str = "exact"
    reason: str | None = None
    """Why it was skipped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """All rows for one model."""

    model: str
    results: tuple[CheckResult, ...]

    @property
    def failed(self) -> tuple[CheckResult, ...]:
        """Rows that failed."""
        return tuple(result for result in self.results if result.status == "fail")

    @property
    def passed(self) -> bool:
        """No row failed, and at least one was judged."""
        return not self.failed and any(result.status == "pass" for result in self.results)

    def raise_if_failed(self) -> None:
        """Raises where ``passed`` is false.

        Raises:
            VerificationError: names the failed checks.
        """
        if not self.passed:
            rows = "; ".join(f"{r.name}: {r.observed}, expected {r.expected}" for r in self.failed)
            raise VerificationError(
                f"verify {self.model}", found=rows or "nothing judged", expected="every check to pass"
            )


def judged(name: str, ok: bool, *, expected: str, observed: str, tolerance: str = "exact") -> CheckResult:
    """A row that passes or fails."""
    status: Status = "pass" if ok else "fail"
    return CheckResult(name=name, status=status, expected=expected, observed=observed, tolerance=tolerance)


def skipped(name: str, reason: str, *, expected: str) -> CheckResult:
    """A row that was not judged."""
    return CheckResult(name=name, status="skip", expected=expected, observed="not run", reason=reason)
