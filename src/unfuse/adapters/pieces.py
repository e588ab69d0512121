"""Text as it is written: which new characters a new token brings.

A character may span several tokens, and what a token adds depends on its neighbours: so a short run of tokens is
decoded with and without the new ones, and the difference is the new text. A token's cost does not grow with the answer.
"""

from __future__ import annotations

from collections.abc import Callable

_HELD_BACK = "\ufffd"
"""What an unfinished character is decoded to."""


class TextPieces:
    """One answer's text in pieces. The pieces joined are the text of all its tokens."""

    def __init__(self, decode_text: Callable[[tuple[int, ...]], str]):
        """Nothing written yet.

        Args:
            decode_text: tokens to text, blanks at both ends stripped.
        """
        self._decode_text = decode_text
        self._shown: list[int] = []
        """The last tokens whose text is out: what comes is decoded after them."""
        self._new: list[int] = []

    def add(self, token_id: int) -> str:
        """What a token adds; empty while a character is not whole."""
        self._new.append(token_id)
        return self._piece(ended=False)

    def end(self) -> str:
        """What was still held back."""
        return self._piece(ended=True) if self._new else ""

    def _piece(self, *, ended: bool) -> str:
        before = self._decode_text(tuple(self._shown))
        text = self._decode_text((*self._shown, *self._new))
        if not text.startswith(before) and not ended:
            return ""  # later tokens settle it
        piece = text[_agreeing(before, text) :]
        if not piece or (piece.endswith(_HELD_BACK) and not ended):
            return ""
        self._shown, self._new = self._new, []
        return piece


def _agreeing(a: str, b: str) -> int:
    """Length of their common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
