"""Render a checkpoint's chat template, and keep control tokens out of questions.

A template is a program of the checkpoint: Jinja's sandbox runs it. transformers tokenizes a rendered prompt without
special tokens if it begins with the BOS token already (``ProcessorMixin.apply_chat_template(tokenize=True)``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from jinja2 import TemplateError

from unfuse.errors import CheckpointError, PromptError

Messages = list[dict[str, Any]]
_TRIAL_QUESTION: Final = "What moves?"
_FAILURES: Final = (
    TemplateError, ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, NameError,
    RecursionError, TypeError, ValueError,
)  # fmt: skip
"""Errors of a template; among them Jinja's SecurityError for an attempt to leave the sandbox."""


def default_template(value: Any, where: str) -> str | None:
    """Return the template that transformers uses: a text itself, of named templates the one named ``default``.

    Args:
        value: a text, a dict of texts by name, or a list of ``{"name": ..., "template": ...}``.
        where: the checkpoint, for messages.

    Raises:
        CheckpointError: no template is named ``default``, or the value is of another form.
    """
    if isinstance(value, (list, tuple)) and all(isinstance(each, dict) for each in value):
        value = {str(each.get("name")): each.get("template") for each in value}
    if isinstance(value, dict):
        names = ", ".join(map(str, value)) or "none"
        if "default" not in value:
            raise CheckpointError(f"chat templates of {where}", found=f"the names {names:.100}", expected="default")
        value = value["default"]
    if value is not None and not isinstance(value, str):
        raise CheckpointError(f"chat template of {where}", found=type(value).__name__, expected="a text")
    return value


class ChatPrompt:
    """Prompts of one checkpoint, from its chat template."""

    def __init__(self, render: Callable[[Messages], Any], tokenizer: Any, kind: str):
        """Try the template once.

        Args:
            render: renders messages with the template.
            tokenizer: the checkpoint's.
            kind: "image" or "video": the medium before a question.

        Raises:
            CheckpointError: the template has a mistake, or does a thing that the sandbox forbids.
        """
        self._render = render
        self._bos = getattr(tokenizer, "bos_token", None)
        self._where = str(getattr(tokenizer, "name_or_path", "") or "the checkpoint")
        self.trial = self.text([kind], _TRIAL_QUESTION)
        """A prompt with one medium."""

    def text(self, kinds: Sequence[str], question: str) -> str:
        """Return the prompt of one user message.

        Args:
            kinds: "image" or "video", one per medium before the question.
            question: checked text.

        Raises:
            CheckpointError: the template fails.
        """
        content = [*({"type": kind} for kind in kinds), {"type": "text", "text": question}]
        try:
            return str(self._render([{"role": "user", "content": content}]))
        except _FAILURES as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"chat template of {self._where}",
                found=f"{type(error).__name__} ({reason})",
                expected="a template that renders one user message",
                fix="fetch the checkpoint again, or report the template to its author",
            ) from None

    def adds_special_tokens(self, text: str) -> bool:
        """Return whether the tokenizer adds its special tokens: not if the prompt begins with the BOS token."""
        return not (self._bos and text.startswith(self._bos))


class ControlTokens:
    """Tokens that steer a model, which a question must not bring."""

    def __init__(self, tokenizer: Any, *, template: str | None = None, processor: Any = None):
        """Collect the tokenizer's own special tokens, and the added tokens of the template.

        Args:
            tokenizer: the checkpoint's.
            template: its chat template.
            processor: holds the placeholders of media (``image_token`` and the like), if there is one.
        """
        self._tokenizer = tokenizer
        added = dict(getattr(tokenizer, "added_tokens_decoder", None) or {})
        self._ids = set(getattr(tokenizer, "all_special_ids", ()))
        self._ids |= {i for i, token in added.items() if getattr(token, "special", False) or _marks(token, template)}
        texts = {*getattr(tokenizer, "all_special_tokens", ()), *(str(added[i]) for i in self._ids if i in added)}
        # Any unknown character gets the id of the unknown token, which may be an ordinary character itself.
        self._ids.discard(getattr(tokenizer, "unk_token_id", None))
        if len(unknown := str(getattr(tokenizer, "unk_token", ""))) == 1:
            texts.discard(unknown)
        for holder in (tokenizer, processor):
            fields = {} if holder is None else getattr(holder, "__dict__", {})
            texts |= {value for name, value in fields.items() if name.endswith("_token") and isinstance(value, str)}
        self._texts = sorted((text for text in texts if text.strip()), key=len, reverse=True)

    def refuse(self, question: str) -> None:
        """Check a question.

        Raises:
            PromptError: the tokenizer reads a part of the question as a control token; the message names the token.
        """
        found = next((text for text in self._texts if text in question), None)
        if found is None:
            # A tokenizer may fold case or width before it looks for tokens, so the text alone does not tell.
            ids = self._tokenizer(question, add_special_tokens=False).input_ids
            control = next((i for i in ids if i in self._ids), None)
            found = None if control is None else str(self._tokenizer.convert_ids_to_tokens(control))
        if found is not None:
            raise PromptError(f"question {question[:60]!r}", found=f"the special token {found}", expected="plain text")


def _marks(token: Any, template: str | None) -> bool:
    """Return whether a template writes an added token, such as ``<|user|>``, that is no plain word."""
    text = str(token)
    return template is not None and text in template and not all(c.isalnum() or c.isspace() for c in text)
