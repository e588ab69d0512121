"""Speculation evaluated token by token: the reference of every faster way."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing

from unfuse.speculation.drafter import Drafts, trimmed


def verified(
    tokens: Generator[int], drafts: Drafts, max_new_tokens: int, is_end: Callable[[int], bool]
) -> Iterator[int]:
    """Yield the tokens of an answer, and count the passes in which drafts would have given them.

    Args:
        tokens: the answer of ordinary decoding, with its first token; no pass computes the first token.
        drafts: of this answer.
        max_new_tokens: tokens that the answer may get.
        is_end: returns whether a token ends the answer.
    """
    with closing(tokens):
        yield from _verified(tokens, drafts, max_new_tokens, is_end)


def _verified(
    tokens: Iterator[int], drafts: Drafts, max_new_tokens: int, is_end: Callable[[int], bool]
) -> Iterator[int]:
    new = [next(tokens)]
    yield new[0]
    left = max_new_tokens - 1
    if not left or is_end(new[-1]):
        return
    following = drafts.draft(new)
    while True:
        draft, new = trimmed(following, left), []
        for token in tokens:
            new.append(token)
            accepted = len(new) <= len(draft) and draft[len(new) - 1] == token
            if not accepted or is_end(token) or len(new) == left:
                break
        left -= len(new)
        ended = not left or is_end(new[-1])
        if not ended:
            # A faster way drafts while the pass ahead is being started, so before it counts this one.
            following = drafts.draft(new)
        drafts.record(len(draft), len(new) - 1)
        yield from new
        if ended:
            return
