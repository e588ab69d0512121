"""Incremental detokenizer: the new text of each new token.

A character may span several tokens, and the text of a token depends on its neighbours. So a short run of tokens is
decoded with and without the new tokens, and the difference is the new text. The cost of a token does not grow with the
length of the answer.
"""

from __future__ import annotations

from collections.abc import Callable

_REPLACEMENT = "\ufffd"
"""Decoded text of an incomplete character."""


class IncrementalDetokenizer:
    """Decodes one answer token by token. The joined pieces are the text of all its tokens."""

    def __init__(self, decode_text: Callable[[tuple[int, ...]], str]):
        """Start without tokens.

        Args:
            decode_text: returns the text of tokens, stripped.
        """
        self._decode_text = decode_text
        self._decoded: list[int] = []
        """The last tokens with returned text; new tokens are decoded after them."""
        self._new: list[int] = []

    def add(self, token_id: int) -> str:
        """Return the new text of a token; empty while a character is incomplete."""
        self._new.append(token_id)
        return self._delta(ended=False)

    def end(self) -> str:
        """Return the text that is still held back."""
        return self._delta(ended=True) if self._new else ""

    def _delta(self, *, ended: bool) -> str:
        before = self._decode_text(tuple(self._decoded))
        text = self._decode_text((*self._decoded, *self._new))
        if not text.startswith(before) and not ended:
            return ""  # later tokens decide
        delta = text[_common_length(before, text) :]
        if not delta or (delta.endswith(_REPLACEMENT) and not ended):
            return ""
        self._decoded, self._new = self._new, []
        return delta


def _common_length(a: str, b: str) -> int:
    """Return the length of the common prefix."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
