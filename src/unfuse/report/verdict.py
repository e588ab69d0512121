"""VALID or INVALID, with the rows of rules that decide it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Outcome = Literal["pass", "fail", "warn", "skip"]
Word = Literal["VALID", "INVALID"]
CONTROL_PROTOCOL: Final = "reencode"
"""A run of this protocol is always INVALID: it shows what the rules must find."""
LISTED_RULES: Final = (
    "samples", "answers", "lengths", "same tokens", "nothing reused", "stages add up", "price of the split",
    "encode once", "work", "hooks fired", "noise", "drift",
)  # fmt: skip
"""Rules that tables of checks list, in this order."""


def word_of(*, valid: bool) -> Word:
    """Return ``VALID`` or ``INVALID``."""
    return "VALID" if valid else "INVALID"


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleRow:
    """One rule, evaluated on one run."""

    rule: str
    """Name of the rule."""
    outcome: Outcome
    """``fail`` makes the run INVALID; ``skip`` means that the rule's measurement is missing."""
    limit: str
    """What the rule expects."""
    value: str
    """What the run has; for ``skip``, why there is nothing to look at."""
    sentences: tuple[str, ...] = ()
    """Reasons of ``fail``, warnings of ``warn``; both have at least one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerdictRecord:
    """Whether a run's numbers may be used."""

    word: Word
    reasons: tuple[str, ...]
    """Why not; empty for a valid run."""
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Verdict on a run: its numbers may be used, or the rules that they break."""

    rules: tuple[RuleRow, ...] = ()
    """Every rule, evaluated once; terminal, Markdown, HTML and JSON repeat these rows."""

    @property
    def listed(self) -> tuple[RuleRow, ...]:
        """Rows for a table of checks; the other rules are mentioned only if they do not hold."""
        found = {row.rule: row for row in self.rules}
        return tuple(found[rule] for rule in LISTED_RULES if rule in found)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Sentences of the failed rules, at least one each; empty for a valid run."""
        return self._sentences("fail")

    @property
    def warnings(self) -> tuple[str, ...]:
        """Doubts that do not make the run invalid."""
        return self._sentences("warn")

    @property
    def valid(self) -> bool:
        """True if no rule failed."""
        return all(row.outcome != "fail" for row in self.rules)

    @property
    def word(self) -> Word:
        """``VALID`` or ``INVALID``."""
        return word_of(valid=self.valid)

    @property
    def record(self) -> VerdictRecord:
        """The verdict as ``summary.json`` holds it."""
        return VerdictRecord(word=self.word, reasons=self.reasons, warnings=self.warnings)

    def _sentences(self, outcome: Outcome) -> tuple[str, ...]:
        return tuple(sentence for row in self.rules if row.outcome == outcome for sentence in row.sentences)
