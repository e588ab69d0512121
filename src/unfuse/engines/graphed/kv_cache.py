"""KV cache of one sequence: one buffer, allocated in whole steps of positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from unfuse.engines.graphed.kernels.launch import UNIT
from unfuse.engines.graphed.llama import Llama
from unfuse.measure.memory import available_bytes

_STEP: Final = 64
"""Capacities are multiples of this many positions."""
_CACHE_BYTES_ON_HOST: Final = 2**30
_RESERVED_BYTES: Final = 3 * 2**30
"""Device memory that a continuous batch leaves free for encoding and prefill."""


@dataclass(slots=True)
class KVCache:
    """Keys and values of one sequence, in all layers."""

    buffer: torch.Tensor
    """``[layers, 2, kv_heads, capacity, D]``"""
    length: int = 0
    """Positions of the prompt written so far in this buffer. Decoding counts the later positions itself."""

    @property
    def capacity(self) -> int:
        """Number of positions that fit into the buffer."""
        return self.buffer.shape[3]

    @property
    def bytes(self) -> int:
        """Size of the buffer in bytes."""
        return self.buffer.nbytes

    def offset(self, base_pointer: torch.Tensor) -> int:
        """Return the buffer's distance from a base pointer, in the kernels' units of ``UNIT`` numbers."""
        distance = self.buffer.data_ptr() - base_pointer.data_ptr()
        units, rest = divmod(distance, UNIT.value * self.buffer.element_size())
        assert rest == 0, "memory that is not aligned"
        return int(units)

    def reserve(self, positions: int, written: int) -> None:
        """Grow the buffer to at least ``positions``, and copy the first ``written`` positions into the new buffer."""
        if positions > self.capacity:
            larger = _buffer_like(self.buffer, positions)
            larger[:, :, :, :written] = self.buffer[:, :, :, :written]
            self.buffer = larger

    def copy_prefix(self, length: int, positions: int) -> KVCache:
        """Return a new cache with room for ``positions``; copy the first ``length`` positions of this cache into it."""
        copy = KVCache(_buffer_like(self.buffer, positions), length)
        copy.buffer[:, :, :, :length].copy_(self.buffer[:, :, :, :length])
        return copy


def new_kv_cache(llama: Llama, positions: int) -> KVCache:
    """Return an empty cache with room for at least ``positions``."""
    shape = len(llama.layers), 2, llama.heads.num_kv_heads, rounded_capacity(positions), llama.heads.head_dim
    return KVCache(torch.empty(shape, dtype=llama.dtype, device=llama.device))


def rounded_capacity(positions: int) -> int:
    """Return the capacity that is allocated for so many positions."""
    return -(-positions // _STEP) * _STEP


def _buffer_like(buffer: torch.Tensor, positions: int) -> torch.Tensor:
    shape = list(buffer.shape)
    shape[3] = rounded_capacity(positions)
    return buffer.new_empty(shape)


def free_cache_bytes(device: torch.device) -> int:
    """Return the bytes that a continuous batch may allocate for KV caches."""
    if device.type != "cuda":
        return _CACHE_BYTES_ON_HOST
    available = available_bytes(device)
    assert available is not None, "CUDA says it"
    return max(0, int((available - _RESERVED_BYTES) * 0.95))
