"""Prefix cache of a continuous batch: KV caches of running requests, and of finished ones for the next question."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from unfuse.engines.graphed.kv_cache import KVCache, new_kv_cache, rounded_capacity
from unfuse.engines.graphed.llama import Llama
from unfuse.engines.prefix import common_prefix

MIN_HIT: Final = 32
"""Positions. A shorter prefix costs about as much to share as to compute."""


@dataclass(slots=True, eq=False)
class CacheEntry:
    """The KV cache of one request."""

    cache: KVCache
    keys: tuple[int, ...]
    """The prompt's token keys; empty if no later prompt may reuse the entry."""
    digest: str | None
    """Digest of the prompt's features."""
    prefix_entry: CacheEntry | None
    """Entry with the first ``prefix_length`` positions of the prompt; ``cache`` holds the positions after them."""
    prefix_length: int
    num_readers: int = 0
    """Running requests that read the entry."""


@dataclass(frozen=True, slots=True)
class PrefixHit:
    """An entry that begins like a prompt, and the number of equal positions."""

    entry: CacheEntry
    positions: int


class KVCachePool:
    """Allocates KV caches within a limit of bytes, and keeps released ones until their memory is needed (LRU).

    A question about the same scene reads the first question's positions in place; nothing is copied.
    """

    def __init__(self, llama: Llama, max_bytes: int):
        self._llama = llama
        self._max_bytes = max_bytes
        self._used: dict[int, CacheEntry] = {}
        self._released: OrderedDict[int, CacheEntry] = OrderedDict()
        self.bytes = 0
        """Allocated, for running and released entries."""

    def fits(self, positions: int) -> bool:
        """Return whether a cache of this length is within the limit when the pool is empty."""
        return self._size(positions) <= self._max_bytes

    def find(self, keys: tuple[int, ...], digest: str | None, longest: int) -> PrefixHit | None:
        """Return the entry with the longest common prefix, or None if that prefix is shorter than ``MIN_HIT``.

        Args:
            keys: the prompt's token keys; empty for a prompt that must not reuse anything.
            digest: of the prompt's features. Only entries with the same features are searched: prompts about different
                scenes have no more in common than the system prompt.
            longest: the most positions that may be reused.
        """
        best, best_length = None, 0
        for entry in (*self._released.values(), *self._used.values()) if keys else ():
            if entry.keys and entry.digest == digest:
                length = min(common_prefix(entry.keys, keys, same_features=True), longest)
                if length > best_length:
                    best, best_length = entry, length
        return PrefixHit(best, best_length) if best is not None and best_length >= MIN_HIT else None

    def allocate(
        self, positions: int, keys: tuple[int, ...], digest: str | None, hit: PrefixHit | None
    ) -> CacheEntry | None:
        """Return an entry for a prompt, or None if running entries leave no room.

        Args:
            positions: of the prompt and its answer.
            keys: the prompt's token keys; empty if no later prompt may reuse the entry.
            digest: of the prompt's features.
            hit: the entry that holds the beginning of the prompt.
        """
        prefix_length = hit.positions if hit else 0
        if hit is not None:
            # In use from here on, so that it is not evicted to make room for this entry.
            self._acquire(hit.entry)
        cache = self._allocate_cache(positions - prefix_length)
        if cache is None:
            if hit is not None:
                self._release(hit.entry)
            return None
        # An entry that continues another one cannot be the beginning of a third: kernels read two buffers at most.
        entry = CacheEntry(cache, () if hit else keys, digest, hit.entry if hit else None, prefix_length)
        self._acquire(entry)
        return entry

    def release(self, entry: CacheEntry) -> None:
        """End one request's use of an entry. It stays available for reuse until its memory is needed."""
        self._release(entry)
        if entry.prefix_entry is not None:
            self._release(entry.prefix_entry)

    def close(self) -> None:
        """Free all entries."""
        self._used.clear()
        self._released.clear()
        self.bytes = 0

    def _acquire(self, entry: CacheEntry) -> None:
        self._released.pop(id(entry), None)
        self._used[id(entry)] = entry
        entry.num_readers += 1

    def _release(self, entry: CacheEntry) -> None:
        entry.num_readers -= 1
        if not entry.num_readers:
            del self._used[id(entry)]
            self._released[id(entry)] = entry

    def _allocate_cache(self, positions: int) -> KVCache | None:
        """Return an empty cache: a released one of about the right size, or a new one."""
        wanted, size = rounded_capacity(positions), self._size(positions)
        fitting = [each for each in self._released.values() if wanted <= each.cache.capacity <= wanted + wanted // 4]
        full = self.bytes + size > self._max_bytes
        # First the entries that no prompt can reuse. The others only if there is no other room.
        for entry in sorted(fitting, key=lambda entry: bool(entry.keys)):
            if full or not entry.keys:
                del self._released[id(entry)]
                entry.cache.length = 0
                return entry.cache
        while self.bytes + size > self._max_bytes and self._released:
            _, entry = self._released.popitem(last=False)
            self.bytes -= entry.cache.bytes
        if self.bytes + size > self._max_bytes:
            return None
        self.bytes += size
        return new_kv_cache(self._llama, positions)

    def _size(self, positions: int) -> int:
        llama = self._llama
        numbers = len(llama.layers) * 2 * llama.heads.num_kv_heads * llama.heads.head_dim
        return int(numbers * rounded_capacity(positions) * llama.dtype.itemsize)
