"""Keys and values of one sequence, in one buffer of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from unfuse.engines.graphed.kernels.launch import UNIT
from unfuse.engines.graphed.structure import Llama

_STEP = 64


@dataclass(slots=True)
class Sequence:
    """A buffer and how much of it is the prompt's; later positions belong to whoever decodes."""

    buffer: torch.Tensor
    """``[layers, 2, kv_heads, capacity, D]``"""
    length: int = 0

    @property
    def capacity(self) -> int:
        """Positions that it has room for."""
        return self.buffer.shape[3]

    def offset(self, anchor: torch.Tensor) -> int:
        """Where it begins, in the kernels' units from the anchor."""
        apart = self.buffer.data_ptr() - anchor.data_ptr()
        units, rest = divmod(apart, UNIT.value * self.buffer.element_size())
        assert rest == 0, "memory that is not aligned"
        return int(units)

    def reserve(self, positions: int, written: int) -> None:
        """Makes room for so many positions, and keeps those that are written."""
        if positions > self.capacity:
            larger = _buffer(self.buffer, positions)
            larger[:, :, :, :written] = self.buffer[:, :, :, :written]
            self.buffer = larger

    def prefix(self, length: int, positions: int) -> Sequence:
        """A new sequence that begins like this one."""
        fresh = Sequence(_buffer(self.buffer, positions), length)
        fresh.buffer[:, :, :, :length] = self.buffer[:, :, :, :length]
        return fresh


def new_sequence(llama: Llama, positions: int) -> Sequence:
    """An empty one."""
    shape = len(llama.layers), 2, llama.heads.kv_heads, _rounded(positions), llama.heads.size
    return Sequence(torch.empty(shape, dtype=llama.dtype, device=llama.device))


def _buffer(like: torch.Tensor, positions: int) -> torch.Tensor:
    shape = list(like.shape)
    shape[3] = _rounded(positions)
    return like.new_empty(shape)


def _rounded(positions: int) -> int:
    return -(-positions // _STEP) * _STEP
