"""Hashes of prompts for vLLM's prefix cache.

vLLM identifies a block of a prompt by the blocks before it and the hash of its embeddings: 5 MB a prompt of a 7B model,
and several milliseconds of the host's time. A salt, or the token keys of a prompt, identify it as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class PrefixKey:
    """Identifies a prompt: two prompts share the KV-cache blocks for which their keys are equal."""

    salt: str | None = None
    """Identifies one sequence of embeddings; no other prompt shares it."""
    token_keys: tuple[int, ...] = ()
    """``Prompt.token_keys``. Without these and without a salt, vLLM hashes the bytes of the embeddings."""
    features_digest: str | None = None

    def then(self, token: int) -> PrefixKey:
        """Return the key of the prompt with one more token."""
        return replace(self, token_keys=(*self.token_keys, token)) if self.token_keys else self


class _BlockHashes(dict[tuple[int, int], bytes]):
    """Hashes of a prompt's blocks by their first position and their end; replaces vLLM's own dictionary."""

    def __init__(self, prefix: PrefixKey):
        super().__init__()
        self._prefix = prefix

    def get(self, key: Any, default: Any = None) -> bytes:
        prefix = self._prefix
        if prefix.salt is not None:
            return b""  # vLLM puts the salt into every hash
        keys = prefix.token_keys[slice(*key)]
        features = prefix.features_digest if any(each < 0 for each in keys) else None
        return hashlib.sha256(f"{features} {keys}".encode()).digest()


class PrefixHasher:
    """Gives an ``LLMEngine`` the hashes of prompts, so that it does not hash embeddings.

    This relies on private names of vLLM (0.24 to 0.33). If they differ, vLLM hashes embeddings as usual.
    """

    def __init__(self, engine: Any):
        self._hashes: _BlockHashes | None = None
        core = getattr(engine.engine_core, "engine_core", None)
        self._vllm_hasher = getattr(core, "request_block_hasher", None)
        if core is not None and self._vllm_hasher is not None:
            core.request_block_hasher = self._hash_blocks

    @contextmanager
    def using(self, prefix: PrefixKey) -> Iterator[None]:
        """While the body runs, a request that is added has this key."""
        self._hashes = _BlockHashes(prefix) if prefix.salt is not None or prefix.token_keys else None
        try:
            yield
        finally:
            self._hashes = None

    def _hash_blocks(self, request: Any) -> Any:
        if self._hashes is not None:
            request._prompt_embeds_per_block_hashes = self._hashes
        assert self._vllm_hasher is not None
        return self._vllm_hasher(request)
