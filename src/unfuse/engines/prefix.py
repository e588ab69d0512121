"""The longest common prefix of two prompts, as far as keys and values can be reused."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from typing import Final

_BLOCK: Final = 64
"""Token keys that are compared at once."""


def common_prefix(a: Sequence[int], b: Sequence[int], *, same_features: bool) -> int:
    """Return the length of the longest common prefix of two prompts' ``token_keys``.

    Keys of feature positions are negative. With different features they never match.
    """
    # A prefix has several hundred positions, and the first token waits for this: compare most of them in blocks.
    shorter = min(len(a), len(b))
    at = next((i for i in range(0, shorter, _BLOCK) if a[i : i + _BLOCK] != b[i : i + _BLOCK]), shorter)
    differs = itertools.compress(itertools.count(at), map(operator.ne, a[at:shorter], b[at:shorter]))
    length = next(differs, shorter)
    if not same_features:
        length = next(itertools.compress(itertools.count(), map(operator.lt, a[:length], itertools.repeat(0))), length)
    return length
