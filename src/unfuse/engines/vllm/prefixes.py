"""What tells one prompt's rows from another's in vLLM's prefix cache.

vLLM knows a block of a prompt by what came before it and the hash of its embeddings: 5 MB a prompt of 7B, and several
milliseconds of the host's time. A salt, or the keys of a prompt's positions, tell as much.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Prefix:
    """Of a prompt: two prompts share the blocks in which this agrees."""

    salt: str | None = None
    """Stands for one sequence of rows, which is shared with nobody else."""
    keys: tuple[int, ...] = ()
    """As ``Prompt.token_keys``; where there is neither these nor a salt, the bytes of the rows are compared."""
    features_digest: str | None = None

    def then(self, token: int) -> Prefix:
        """Of the prompt and one token more."""
        return replace(self, keys=(*self.keys, token)) if self.keys else self


class _Blocks(dict[tuple[int, int], bytes]):
    """Hashes of a prompt's rows by where they begin and end, in the place of vLLM's own."""

    def __init__(self, prefix: Prefix):
        super().__init__()
        self._prefix = prefix

    def get(self, key: Any, default: Any = None) -> bytes:
        prefix = self._prefix
        if prefix.salt is not None:
            return b""  # it is part of every hash already
        keys = prefix.keys[slice(*key)]
        features = prefix.features_digest if any(at < 0 for at in keys) else None
        return hashlib.sha256(f"{features} {keys}".encode()).digest()


class BlockHashes:
    """Gives a ``LLMEngine`` the hashes of prompts, so that it need not make them.

    This goes by names that are vLLM's own (0.24 to 0.33); where they are others, it hashes rows as ever.
    """

    def __init__(self, engine: Any):
        self._blocks: _Blocks | None = None
        core = getattr(engine.engine_core, "engine_core", None)
        self._own = getattr(core, "request_block_hasher", None)
        if core is not None and self._own is not None:
            core.request_block_hasher = self._hashes

    @contextmanager
    def given(self, prefix: Prefix) -> Iterator[None]:
        """While the body runs, a request that is added is one with this prefix."""
        self._blocks = _Blocks(prefix) if prefix.salt is not None or prefix.keys else None
        try:
            yield
        finally:
            self._blocks = None

    def _hashes(self, request: Any) -> Any:
        if self._blocks is not None:
            request._prompt_embeds_per_block_hashes = self._blocks
        assert self._own is not None
        return self._own(request)
