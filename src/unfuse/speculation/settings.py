"""Options of speculation, as a user gives them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unfuse.errors import InputError
from unfuse.speculation.drafter import MAX_DRAFT

METHODS: Final = ("auto", "off", "history", "ngram")
"""Values of ``--speculate``. ``auto`` is ``history`` where an engine verifies several tokens in one pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeculationSettings:
    """How the next tokens of an answer are drafted.

    Raises:
        InputError: no such method, a number out of range, a history file without the method ``history``, or a path
            that can be no history file.
    """

    method: str = "auto"
    draft_tokens: int | None = None
    """Most drafted tokens of a pass; None drafts as many as pay."""
    history: Path | None = None
    """File of earlier answers, which is read at first and written at the end."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError("speculate", found=repr(self.method), expected=", ".join(METHODS))
        if self.draft_tokens is not None and not 1 <= self.draft_tokens <= MAX_DRAFT:
            raise InputError("draft-tokens", found=self.draft_tokens, expected=f"auto, or 1 to {MAX_DRAFT}")
        if self.draft_tokens is not None and self.method == "off":
            raise InputError("draft-tokens", found="speculate off", expected="a method that drafts tokens")
        if self.history is not None:
            if self.method not in ("auto", "history"):
                raise InputError("history", found=f"speculate {self.method}", expected="history")
            _check_file(self.history)


def _check_file(path: Path) -> None:
    """Refuse a path that can be no history file, before a model is loaded.

    Raises:
        InputError: the path is no regular file, or its folder does not exist.
    """
    if path.exists():
        if not path.is_file():
            raise InputError(f"history {path}", found="no regular file", expected="a history file, or a new path")
    elif not path.parent.is_dir():
        raise InputError(f"history {path}", found="no such folder", expected="a path in an existing folder")


def parse_draft_tokens(text: str) -> int | None:
    """Return the number of ``--draft-tokens``; None for ``auto``.

    Raises:
        InputError: neither ``auto`` nor a number.
    """
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise InputError("draft-tokens", found=repr(text), expected=f"auto, or 1 to {MAX_DRAFT}") from None
