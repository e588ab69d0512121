"""Memory that passes of the network work in, one pass at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Self

import torch

from unfuse.engines.graphed.caches import Sequence, new_sequence
from unfuse.engines.graphed.kernels.few_rows import MOST_ROWS
from unfuse.engines.graphed.products import Scratch
from unfuse.engines.graphed.streamed import StreamedStep, Streaming
from unfuse.engines.graphed.structure import Llama

_PARTIAL: Final = 16 * 2**20
"""float32 numbers that split products may leave: 64 MiB."""
MOST_TOGETHER: Final = 256
"""Rows of a decode step; beyond, more rows gain little and each holds a cache."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What lies between the products of a layer, ``[R, ...]`` each."""

    x: torch.Tensor
    heads: torch.Tensor
    attended: torch.Tensor
    inner: torch.Tensor
    normed: torch.Tensor
    wide: torch.Tensor

    @classmethod
    def of_zeros(cls, llama: Llama, rows: int) -> Self:
        """For so many rows. Those that stand for nothing are read too, and must be numbers."""

        def zeros(width: int) -> torch.Tensor:
            return torch.zeros(rows, width, dtype=llama.dtype, device=llama.device)

        return cls(
            x=zeros(llama.hidden),
            heads=zeros(llama.heads.width),
            attended=zeros(llama.heads.heads * llama.heads.size),
            inner=zeros(llama.inner),
            normed=zeros(llama.hidden),
            wide=zeros(2 * llama.inner),
        )


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Workspace:
    """What all passes share, since no two run at once.

    A captured pass reads and writes at fixed places, so whatever it was given (a ``Batch``, a ``Tail``) keeps this
    alive. The network lets go of it when it is closed, and a later pass works in a new one.
    """

    llama: Llama
    few: Memory
    """For up to 64 rows."""
    scratch: Scratch
    nowhere: Sequence
    """Where rows write that stand for no sequence."""
    streaming: Streaming | None
    """Of the one kernel that is a step, where there is one."""
    _wide: dict[int, Memory] = field(default_factory=dict)

    @classmethod
    def of(cls, llama: Llama, streamed: StreamedStep | None) -> Self:
        """Takes the memory, in zeros."""
        few = Memory.of_zeros(llama, MOST_ROWS)
        arrived = max(llama.head.weight.shape[0], MOST_TOGETHER * llama.heads.heads)
        scratch = Scratch(
            normed=few.normed,
            wide=few.wide,
            partial=torch.zeros(_PARTIAL, dtype=torch.float32, device=llama.device),
            arrived=torch.zeros(arrived, dtype=torch.int32, device=llama.device),
        )
        return cls(llama, few, scratch, new_sequence(llama, 1), streamed.memory() if streamed else None)

    @property
    def anchor(self) -> torch.Tensor:
        """Which places of caches count from, in passes that work here."""
        return self.few.x

    def offset(self, sequence: Sequence) -> int:
        """Where a sequence is, for those passes."""
        return sequence.offset(self.anchor)

    def memory(self, rows: int) -> Memory:
        """For about so many rows."""
        if rows <= MOST_ROWS:
            return self.few
        size = row_bucket(rows)
        if size not in self._wide:
            self._wide[size] = Memory.of_zeros(self.llama, size)
        return self._wide[size]


def row_bucket(rows: int) -> int:
    """Rows of the graph that serves so many sequences: a power of two."""
    return 1 << (rows - 1).bit_length()
