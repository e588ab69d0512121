"""Questions, and the rules for their text before it enters a prompt."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from unfuse.errors import PromptError
from unfuse.stages import DEFAULT_QUESTION

_LEADING: Final = re.compile(r"\A\s*<event>\s*\n?")
_SPECIAL: Final = re.compile(r"<(?:event|ev_start|ev_end|ev_patch|image|video|s|/s|unk|pad)>")


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question about one scene."""

    question_id: str
    """ID of its answer, unique among the questions of a run or a server."""
    text: str


def clean_question(text: str | None) -> str:
    """Return the question as it enters the prompt.

    One leading ``<event>`` line of the instruction set is dropped; an empty question becomes the default question.

    Raises:
        PromptError: the question has another special token; it would change the prompt and its measurement.
    """
    question = _LEADING.sub("", (text or "").lstrip("\ufeff"), count=1).strip()
    if not question:
        return DEFAULT_QUESTION
    if special := _SPECIAL.search(question):
        raise PromptError(
            f"question {question[:60]!r}", found=f"the special token {special.group()}", expected="plain text"
        )
    return question
