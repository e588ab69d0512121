"""Checksums of tensors, computed on their device.

The checksum of a tensor of 64-bit words w_i (zero-padded) is ``sum(m(w_i) * (2 i + 1)) mod 2**64``. The bijection m
mixes a word's bits: ``m(w) = y ^ (y >> 32)``, ``y = (w ^ (w >> 32)) * C`` with C = 0x9E3779B97F4A7C15. Odd
weights are invertible, so any single changed word changes the checksum. Without the mixing, exchanging two words that
differ in their highest bit would not change it. The checksum detects mistakes, not forgeries. A 13 GB model takes well
under a second on a GPU and needs no copy to the host. On a CPU a compiled loop reads 9 GB/s, torch's operations 0.6.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

_CHUNK_WORDS: Final = 1 << 18
"""Words of a chunk, so that it fits into the caches of a CPU."""
_LOW: Final = 2**32 - 1
_ODD: Final = 0x9E3779B97F4A7C15
_ODD_WORD: Final = np.uint64(_ODD)
_HALF: Final = np.uint64(32)


def tensor_checksum(tensor: torch.Tensor) -> int:
    """Return the order-sensitive 64-bit checksum of a tensor's bytes; shape and dtype do not matter."""
    import torch

    data = tensor.detach().contiguous().flatten().view(torch.uint8)
    if rest := data.numel() % 8:
        data = torch.cat([data, data.new_zeros(8 - rest)])
    if data.storage_offset() % 8:
        data = data.clone()
    if not data.is_cpu:
        return checksum_by_torch(data.view(torch.int64))
    return int(_sum_loop()(data.numpy().view(np.uint64)))


def checksum_by_torch(words: torch.Tensor) -> int:
    """Compute the checksum by torch's operations, on any device; slow on a CPU."""
    import torch

    total = torch.zeros((), dtype=torch.int64, device=words.device)
    size = _CHUNK_WORDS * (16 if words.is_cuda else 1)
    for start in range(0, words.numel(), size):
        chunk = words[start : start + size]
        mixed = ((chunk >> 32) & _LOW).bitwise_xor_(chunk).mul_(_ODD - 2**64)  # as a signed word
        mixed ^= (mixed >> 32) & _LOW
        mixed *= torch.arange(2 * start + 1, 2 * (start + chunk.numel()), 2, device=words.device)
        total += mixed.sum()
    return int(total) & (2**64 - 1)


@cache
def _sum_loop() -> Callable[[NDArray[np.uint64]], int]:
    from unfuse.compiled import compiled

    return compiled(_sum_words)


def _sum_words(words: NDArray[np.uint64]) -> int:
    total, weight, step = np.uint64(0), np.uint64(1), np.uint64(2)
    for i in range(len(words)):
        mixed = (words[i] ^ (words[i] >> _HALF)) * _ODD_WORD
        total += (mixed ^ (mixed >> _HALF)) * weight
        weight += step
    return total  # type: ignore[return-value]  # numba returns a Python integer


def digest_tensors(named: Iterable[tuple[str, torch.Tensor]], *extra: str) -> str:
    """Return the SHA-256 of ``extra``, and of names, dtypes, shapes and checksums in the given order."""
    digest = hashlib.sha256()
    for text in extra:
        digest.update(text.encode() + b"\0")
    for name, tensor in named:
        line = f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor_checksum(tensor):016x}\n"
        digest.update(line.encode())
    return digest.hexdigest()
