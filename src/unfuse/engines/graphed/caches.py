"""Keys and values of a sequence, in one buffer of its own, and a shelf of many."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import torch

from unfuse.engines.eager import common_prefix
from unfuse.engines.graphed.kernels.launch import UNIT
from unfuse.engines.graphed.structure import Llama

_STEP: Final = 64
WORTH: Final = 32
"""Positions that are worth copying rather than computing."""


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

    @property
    def bytes(self) -> int:
        """Of its buffer."""
        return self.buffer.nbytes

    def begin_like(self, other: Sequence, length: int) -> None:
        """Copies the beginning of another."""
        self.buffer[:, :, :, :length].copy_(other.buffer[:, :, :, :length])
        self.length = length

    def prefix(self, length: int, positions: int) -> Sequence:
        """A new sequence that begins like this one."""
        fresh = Sequence(_buffer(self.buffer, positions))
        fresh.begin_like(self, length)
        return fresh


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A sequence on a shelf, and of which prompt it is."""

    sequence: Sequence
    keys: tuple[int, ...]
    digest: str | None

    @property
    def written(self) -> int:
        """Positions whose keys and values are on their way to it, of the prompt."""
        return min(self.sequence.length, len(self.keys))


class Shelf:
    """Keys and values of many prompts within a bound: those in use, and those kept for a later question.

    Memory that is let go is kept with what it holds until somebody else needs it, whoever was asked about longest ago
    first.
    """

    def __init__(self, llama: Llama, most_bytes: int):
        self._llama = llama
        self._most = most_bytes
        self._used: dict[int, Held] = {}
        self._kept: OrderedDict[int, Held] = OrderedDict()
        self.bytes = 0

    def fits(self, positions: int) -> bool:
        """Whether there is room for one more sequence beside those in use."""
        in_use = sum(held.sequence.bytes for held in self._used.values())
        return in_use + self._size(positions) <= self._most

    def holds(self, positions: int) -> bool:
        """Whether one sequence of this length could be held at all."""
        return self._size(positions) <= self._most

    def held_of(self, keys: tuple[int, ...], digest: str | None, longest: int) -> int:
        """How much of a prompt ``take`` would take over."""
        return self._like(keys, digest, longest)[1] if keys else 0

    def take(self, positions: int, keys: tuple[int, ...], digest: str | None, longest: int) -> tuple[Held, int]:
        """A sequence for a prompt, and how much of the prompt it holds already.

        Args:
            positions: room that it must have.
            keys: the prompt's ``token_keys``; empty where nothing is to be reused, now or later.
            digest: of the prompt's features.
            longest: positions that may be taken over at most.
        """
        source, same = self._like(keys, digest, longest) if keys else (None, 0)
        if source is not None and id(source) in self._kept and source.sequence.capacity >= positions:
            del self._kept[id(source)]
            source.sequence.length = same
            taken = Held(source.sequence, keys, digest)
        else:
            taken = Held(self._memory(positions, source), keys, digest)
            if source is not None:
                taken.sequence.begin_like(source.sequence, same)
        self._used[id(taken)] = taken
        return taken, same

    def let_go(self, held: Held) -> None:
        """It is no longer written to; its prompt is kept as long as nobody needs the memory."""
        del self._used[id(held)]
        self._kept[id(held)] = held

    def close(self) -> None:
        """Frees all of it."""
        self._used.clear()
        self._kept.clear()
        self.bytes = 0

    def _like(self, keys: tuple[int, ...], digest: str | None, longest: int) -> tuple[Held | None, int]:
        """Who holds most of this prompt, and how much; the newest of equals, so that a scene stays as it is asked."""
        best, most = None, 0
        for held in (*self._used.values(), *self._kept.values()):
            # Prompts of other scenes share a system sentence at most, which is not worth a copy.
            if held.keys and held.digest == digest:
                same = min(common_prefix(held.keys, keys, same_features=True), longest, held.written)
                if same >= most and same >= WORTH:
                    best, most = held, same
        return best, most

    def _memory(self, positions: int, source: Held | None) -> Sequence:
        """An empty sequence: one that was let go and is not much too large, or a new one."""
        wanted = _rounded(positions)
        free = [held for held in self._kept.values() if held is not source]
        fitting = [held for held in free if wanted <= held.sequence.capacity <= wanted + wanted // 4]
        full = self.bytes + self._size(positions) > self._most
        # Before anything else, what nobody can ask about again; what can be, only where there is no other room.
        for held in sorted(fitting, key=lambda held: bool(held.keys)):
            if full or not held.keys:
                del self._kept[id(held)]
                held.sequence.length = 0
                return held.sequence
        while self.bytes + self._size(positions) > self._most and free:
            held = free.pop(0)
            del self._kept[id(held)]
            self.bytes -= held.sequence.bytes
        sequence = new_sequence(self._llama, positions)
        self.bytes += sequence.bytes
        return sequence

    def _size(self, positions: int) -> int:
        llama = self._llama
        numbers = len(llama.layers) * 2 * llama.heads.kv_heads * llama.heads.size
        return numbers * _rounded(positions) * torch.empty(0, dtype=llama.dtype).element_size()


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
