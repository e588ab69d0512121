"""Workspaces: the memory of one pass at a time; captured graphs read and write it at fixed addresses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Self

import torch

from unfuse.engines.graphed.gemm import Scratch
from unfuse.engines.graphed.kernels.skinny_gemm import MAX_SKINNY_ROWS
from unfuse.engines.graphed.kv_cache import KVCache, new_kv_cache
from unfuse.engines.graphed.llama import Llama
from unfuse.engines.graphed.megakernel import Megakernel, MegakernelWorkspace

_PARTIAL: Final = 16 * 2**20
"""float32 partial sums of split-K products: 64 MiB."""
MAX_BATCH: Final = 256
"""Rows of a decode step. More rows gain little, and each holds a KV cache."""


@dataclass(frozen=True, slots=True)
class Activations:
    """Activations between the matrix products of a layer, ``[R, ...]`` each."""

    x: torch.Tensor
    heads: torch.Tensor
    attended: torch.Tensor
    inner: torch.Tensor
    normed: torch.Tensor
    wide: torch.Tensor

    @classmethod
    def of_zeros(cls, llama: Llama, rows: int) -> Self:
        """Allocate them for so many rows. Padding rows are computed too, so they must not hold NaN."""

        def zeros(width: int) -> torch.Tensor:
            return torch.zeros(rows, width, dtype=llama.dtype, device=llama.device)

        return cls(
            x=zeros(llama.hidden),
            heads=zeros(llama.heads.width),
            attended=zeros(llama.heads.num_heads * llama.heads.head_dim),
            inner=zeros(llama.inner),
            normed=zeros(llama.hidden),
            wide=zeros(2 * llama.inner),
        )


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Workspace:
    """Memory that all passes of a model share, since no two run at the same time.

    A captured pass uses fixed addresses, so each ``DecodeBatch`` and ``ExtendBatch`` keeps its workspace alive. A model
    runner that is closed releases its workspace; a running step keeps its own, and a later pass gets a new one.
    """

    llama: Llama
    skinny: Activations
    """Activations of passes over up to 64 rows."""
    scratch: Scratch
    dummy_cache: KVCache
    """KV cache that padding rows read and write."""
    megakernel_work: MegakernelWorkspace | None
    """None if a decode step is several kernels."""
    _wide: dict[int, Activations] = field(default_factory=dict)

    @classmethod
    def of(cls, llama: Llama, megakernel: Megakernel | None) -> Self:
        """Allocate the memory, filled with zeros."""
        skinny = Activations.of_zeros(llama, MAX_SKINNY_ROWS)
        semaphores = max(llama.head.weight.shape[0], MAX_BATCH * llama.heads.num_heads)
        scratch = Scratch(
            normed=skinny.normed,
            wide=skinny.wide,
            partial=torch.zeros(_PARTIAL, dtype=torch.float32, device=llama.device),
            semaphores=torch.zeros(semaphores, dtype=torch.int32, device=llama.device),
        )
        return cls(llama, skinny, scratch, new_kv_cache(llama, 1), megakernel.memory() if megakernel else None)

    @property
    def base_pointer(self) -> torch.Tensor:
        """Tensor that the kernels' cache offsets count from."""
        return self.skinny.x

    def offset(self, cache: KVCache) -> int:
        """Return the offset of a KV cache from the base pointer."""
        return cache.offset(self.base_pointer)

    def activations(self, rows: int) -> Activations:
        """Return activations for at least so many rows."""
        if rows <= MAX_SKINNY_ROWS:
            return self.skinny
        size = row_bucket(rows)
        if size not in self._wide:
            self._wide[size] = Activations.of_zeros(self.llama, size)
        return self._wide[size]


def row_bucket(rows: int) -> int:
    """Return the rows of the captured step that serves so many sequences: a power of two."""
    return 1 << (rows - 1).bit_length()
