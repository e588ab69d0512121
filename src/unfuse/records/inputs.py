"""Inputs of a recorded run against the inputs of the process that continues it: questions, and media by their hash."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedInput:
    """Input of one answer, as its line has it."""

    question: str | None
    """None where the line has none, as every line of a sample that failed before its question was read."""
    media_sha256: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class PresentInput:
    """Input under an ID that would be answered now."""

    sample_id: str
    question: str
    media: str
    """Name of the media, for a message."""
    media_sha256: Callable[[], str]
    """Reads the media."""


def first_changed_input(recorded: Mapping[str, RecordedInput], present: Iterable[PresentInput]) -> str | None:
    """Return a phrase that names the first input that differs from its record; None if every recorded input is there.

    Args:
        recorded: by ID.
        present: in the order of the rows. Rows without a record are not read: their answer will be about what they
            hold now.

    Raises:
        FileAccessError: a medium is missing or unreadable.
    """
    left = dict(recorded)
    for each in present:
        before = left.pop(each.sample_id, None)
        if before is None:
            continue
        if before.question is not None and before.question != each.question:
            was, now = _short(before.question), _short(each.question)
            return f"question of {each.sample_id!r}: recorded {was}, now {now}"
        if before.media_sha256 and (now := each.media_sha256()) != before.media_sha256:
            hashes = f"recorded sha256 {before.media_sha256[:16]}, now {now[:16]}"
            return f"media of {each.sample_id!r} ({each.media}): {hashes}"
    missing = next(iter(left), None)
    return None if missing is None else f"row {missing!r}: recorded, now missing"


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
