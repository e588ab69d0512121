"""What may be asked: the rules for a question before it enters a prompt."""

from __future__ import annotations

import re
from typing import Final

from unfuse.errors import PromptError
from unfuse.stages import DEFAULT_QUESTION

_LEADING: Final = re.compile(r"\A\s*<event>\s*\n?")
_SPECIAL: Final = re.compile(r"<(?:event|ev_start|ev_end|ev_patch|image|video|s|/s|unk|pad)>")


def clean_question(text: str | None) -> str:
    """The question as it enters the prompt.

    One leading ``<event>`` line is dropped, as the instruction set writes it; an empty question means the default.

    Raises:
        PromptError: another special token is in it. It would become a token of its own and change what is measured.
    """
    question = _LEADING.sub("", text or "", count=1).strip()
    if not question:
        return DEFAULT_QUESTION
    if special := _SPECIAL.search(question):
        raise PromptError(
            f"question {question[:60]!r}", found=f"the special token {special.group()}", expected="plain text"
        )
    return question
