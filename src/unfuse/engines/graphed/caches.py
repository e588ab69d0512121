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


@dataclass(slots=True, eq=False)
class Held:
    """A sequence on a shelf, and of which prompt it is."""

    sequence: Sequence
    keys: tuple[int, ...]
    digest: str | None
    ahead: Held | None
    """Holds the positions before those of the sequence."""
    shared: int
    """How many those are."""
    users: int = 0


@dataclass(frozen=True, slots=True)
class Match:
    """What begins as a prompt does, and how far."""

    held: Held
    positions: int


class Shelf:
    """Keys and values of many prompts within a bound: those in use, and those kept for a later question.

    A further question about a scene does not copy what is there: its sequence begins where that ends. What is let go is
    kept with what it holds until somebody else needs the memory, whoever was asked about longest ago first.
    """

    def __init__(self, llama: Llama, most_bytes: int):
        self._llama = llama
        self._most = most_bytes
        self._used: dict[int, Held] = {}
        self._kept: OrderedDict[int, Held] = OrderedDict()
        self.bytes = 0

    def holds(self, positions: int) -> bool:
        """Whether one sequence of this length could be held at all."""
        return self._size(positions) <= self._most

    def match(self, keys: tuple[int, ...], digest: str | None, longest: int) -> Match | None:
        """What holds most of a prompt's beginning.

        Args:
            keys: the prompt's ``token_keys``; empty where nothing is to be reused, now or later.
            digest: of the prompt's features.
            longest: positions that may be taken over at most.
        """
        best, most = None, 0
        for held in (*self._kept.values(), *self._used.values()) if keys else ():
            # Prompts of other scenes share a system sentence at most, which is not worth it.
            if held.keys and held.digest == digest:
                same = min(common_prefix(held.keys, keys, same_features=True), longest)
                if same > most:
                    best, most = held, same
        return Match(best, most) if best is not None and most >= WORTH else None

    def take(self, positions: int, keys: tuple[int, ...], digest: str | None, match: Match | None) -> Held | None:
        """A sequence for a prompt.

        Args:
            positions: of the prompt and its answer.
            keys: the prompt's ``token_keys``; empty where nothing is to be reused later.
            digest: of the prompt's features.
            match: what it begins like.

        Returns:
            None where there is no room beside those in use.
        """
        shared = match.positions if match else 0
        if match is not None:
            # Not to be taken away for this very sequence.
            self._begin_use(match.held)
        sequence = self._memory(positions - shared)
        if sequence is None:
            if match is not None:
                self._end_use(match.held)
            return None
        # What does not stand on its own cannot be another's beginning.
        held = Held(sequence, () if match else keys, digest, match.held if match else None, shared)
        self._begin_use(held)
        return held

    def let_go(self, held: Held) -> None:
        """It is no longer written to; its prompt is kept as long as nobody needs the memory."""
        self._end_use(held)
        if held.ahead is not None:
            self._end_use(held.ahead)

    def close(self) -> None:
        """Frees all of it."""
        self._used.clear()
        self._kept.clear()
        self.bytes = 0

    def _begin_use(self, held: Held) -> None:
        self._kept.pop(id(held), None)
        self._used[id(held)] = held
        held.users += 1

    def _end_use(self, held: Held) -> None:
        held.users -= 1
        if not held.users:
            del self._used[id(held)]
            self._kept[id(held)] = held

    def _memory(self, positions: int) -> Sequence | None:
        """An empty sequence: one that was let go and is not much too large, or a new one."""
        wanted, size = _rounded(positions), self._size(positions)
        fitting = [held for held in self._kept.values() if wanted <= held.sequence.capacity <= wanted + wanted // 4]
        full = self.bytes + size > self._most
        # Before anything else, what nobody can ask about again; what can be, only where there is no other room.
        for held in sorted(fitting, key=lambda held: bool(held.keys)):
            if full or not held.keys:
                del self._kept[id(held)]
                held.sequence.length = 0
                return held.sequence
        while self.bytes + size > self._most and self._kept:
            _, held = self._kept.popitem(last=False)
            self.bytes -= held.sequence.bytes
        if self.bytes + size > self._most:
            return None
        self.bytes += size
        return new_sequence(self._llama, positions)

    def _size(self, positions: int) -> int:
        llama = self._llama
        numbers = len(llama.layers) * 2 * llama.heads.kv_heads * llama.heads.size
        return int(numbers * _rounded(positions) * llama.dtype.itemsize)


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
