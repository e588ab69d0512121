"""The LLaMA on rows: one new token of each of several sequences, or the end of a prompt of one."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Final

import torch

from unfuse.engines.graphed.caches import new_sequence
from unfuse.engines.graphed.capture import cut, part_ends
from unfuse.engines.graphed.kernels.decode_attention import DecodeShape, decode_attention, partial_size
from unfuse.engines.graphed.kernels.few_rows import MOST_ROWS, padded_rows
from unfuse.engines.graphed.kernels.prompt_attention import Sequences, place_keys, prompt_attention
from unfuse.engines.graphed.kernels.rows import begin_step, rotary_angles
from unfuse.engines.graphed.kernels.shared_attention import (
    MEMBERS,
    MOST_SHARED_SPLITS,
    SharedParts,
    shared_attention,
)
from unfuse.engines.graphed.kernels.tail_attention import tail_attention
from unfuse.engines.graphed.products import Cut, Product, Scratch, bucket
from unfuse.engines.graphed.streamed import StreamedStep, streamed_sizes
from unfuse.engines.graphed.structure import Llama
from unfuse.engines.graphed.tuning import Tuner
from unfuse.engines.unserved import Unserved

_PARTIAL: Final = 16 * 2**20
"""float32 numbers that split products may leave: 64 MiB."""
_PROGRAMS: Final = 264
"""Of attention, at least: two for each multiprocessor of the largest chips."""
_MOST_SPLITS: Final = 16
_BESIDE_SHARED: Final = DecodeShape(1, 32, 1, 2)
"""Where all that is long is shared: few positions a row, so small programs, many at once (137 against 275 us on an
H100, for 250 rows of 50 positions)."""
_TAIL_SPLITS: Final = 6
"""Of attention of a few rows."""
MOST_TOGETHER: Final = 256
"""Rows of a decode step; beyond, more rows gain little and each holds a cache."""
_TYPICAL: Final = 703
"""Cached positions while ways are tried: what is fast depends on what stands beside it."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What a decode step reads and writes, at the same place in memory every time."""

    token: torch.Tensor
    """int64 ``[B]``: in, of this step."""
    length: torch.Tensor
    """int32 ``[B]``: positions in the cache; a step adds one."""
    position: torch.Tensor
    """int32 ``[B]``: of the token on the rotary axes; a step adds one."""
    caches: torch.Tensor
    """int64 ``[B]``, as the kernels take them."""
    capacity: torch.Tensor
    """int32 ``[B]``"""
    here: torch.Tensor
    """int32 ``[B]``: where this step's keys go."""
    cosine: torch.Tensor
    sine: torch.Tensor
    logits: torch.Tensor
    """float32 ``[B, V]``: out, rounded to the model's dtype as its own are."""

    @property
    def rows(self) -> int:
        """B."""
        return len(self.token)

    def first(self, rows: int) -> Batch:
        """The same memory for fewer rows."""
        fields = {field.name: getattr(self, field.name)[:rows] for field in dataclasses.fields(self)}
        return Batch(**fields)


@dataclass(frozen=True, slots=True)
class Tail:
    """The same for rows of prompts, one sequence's after the other's, each after what is cached of it."""

    embeds: torch.Tensor
    """``[R, H]``"""
    positions: torch.Tensor
    """int32 ``[A, R]``"""
    numbers: torch.Tensor
    """int64 ``[8, S]``, as ``Sequences`` has them."""
    logits: torch.Tensor
    """float32 ``[S, V]``, after each one's last row."""
    shared: bool = False
    """Whether some of what comes before the rows lies in another sequence."""

    @property
    def rows(self) -> int:
        """R."""
        return len(self.embeds)

    @property
    def sequences(self) -> int:
        """S."""
        return self.numbers.shape[1]

    def first(self, rows: int) -> Tail:
        """The same memory for fewer rows."""
        return dataclasses.replace(self, embeds=self.embeds[:rows], positions=self.positions[:, :rows])


@dataclass(frozen=True, slots=True)
class Memory:
    """What lies between the products of a layer, ``[R, ...]`` each."""

    x: torch.Tensor
    heads: torch.Tensor
    attended: torch.Tensor
    inner: torch.Tensor
    normed: torch.Tensor
    wide: torch.Tensor


class Network:
    """Runs a LLaMA on memory of its own; knows nothing of graphs, tokens or answers."""

    def __init__(self, llama: Llama, tuner: Tuner):
        self.llama = llama
        self.axes = int(llama.axes.max()) + 1
        """Rotary axes: 1 for text, 3 under M-RoPE."""
        self._tuner = tuner
        layers = llama.layers
        self._qkv = Product("qkv", [x.qkv for x in layers], gains=[x.input_gain for x in layers], eps=llama.eps)
        self._out = Product("out", [x.out for x in layers], add=True)
        self._gate_up = Product(
            "gate_up", [x.gate_up for x in layers], gains=[x.post_gain for x in layers], eps=llama.eps, gated=True
        )
        self._down = Product("down", [x.down for x in layers], add=True)
        self._head = Product("head", [llama.head], gains=[llama.final_gain], eps=llama.eps)
        self._memory = self._new_memory(MOST_ROWS)
        # Rows that stand for nothing are read too, and must be numbers.
        for field in dataclasses.fields(self._memory):
            getattr(self._memory, field.name).zero_()
        # Not freed by ``close``: the step of an answer that is still being written works in it.
        self._scratch = Scratch(
            normed=self._memory.normed,
            wide=self._memory.wide,
            partial=self._zeros(_PARTIAL, dtype=torch.float32),
            arrived=self._zeros(max(llama.head.weight.shape[0], MOST_TOGETHER * llama.heads.heads), dtype=torch.int32),
        )
        self._attention: dict[int, DecodeShape] = {}
        self._wide: dict[int, Memory] = {}
        self.anchor = self._memory.x
        self.nowhere = new_sequence(llama, 1)
        """Where rows write that stand for no sequence."""
        self.notes: tuple[str, ...] = ()
        """Why a step of one row is not one kernel, where it could be."""
        self._streamed: StreamedStep | None = None
        if (sizes := streamed_sizes(llama)) is not None:
            try:
                self._streamed = StreamedStep(llama, sizes)
            except Unserved as reason:
                self.notes = (f"a decode step is many kernels, not one: {reason}",)

    def batch(self, rows: int) -> Batch:
        """Memory for a decode step, all of whose rows stand for nothing yet."""
        half = self.llama.heads.size // 2
        return Batch(
            token=self._zeros(rows, dtype=torch.int64),
            length=self._zeros(rows, dtype=torch.int32),
            position=self._zeros(rows, dtype=torch.int32),
            caches=self._zeros(rows, dtype=torch.int64).fill_(self.nowhere.offset(self.anchor)),
            capacity=self._zeros(rows, dtype=torch.int32).fill_(self.nowhere.capacity),
            here=self._zeros(rows, dtype=torch.int32),
            cosine=self._zeros(rows, half),
            sine=self._zeros(rows, half),
            logits=self._zeros(rows, self.llama.head.weight.shape[0], dtype=torch.float32),
        )

    def tail(self, rows: int, sequences: int = 1, *, shared: bool = False) -> Tail:
        """Memory for rows of so many prompts, a power of two."""
        nowhere = [self.nowhere.offset(self.anchor), self.nowhere.capacity, 0, 1, 0, 0, 1, 0]
        numbers = torch.tensor(nowhere, device=self.llama.device)[:, None].repeat(1, sequences)
        numbers[3:5, 1:] = torch.tensor([[0], [1]])
        return Tail(
            embeds=self._zeros(rows, self.llama.hidden),
            positions=self._zeros(self.axes, rows, dtype=torch.int32),
            numbers=numbers,
            logits=self._zeros(sequences, self.llama.head.weight.shape[0], dtype=torch.float32),
            shared=shared,
        )

    def shared(self, rows: int) -> SharedParts:
        """Memory for what that many rows of a step share: nothing yet."""
        heads, groups = self.llama.heads, rows
        return SharedParts(
            members=self._zeros(groups, MEMBERS, dtype=torch.int32).fill_(-1),
            caches=self._zeros(groups, dtype=torch.int64),
            capacity=self._zeros(groups, dtype=torch.int32).fill_(1),
            length=self._zeros(groups, dtype=torch.int32),
            shares=self._zeros(rows, dtype=torch.int32),
            partial=self._zeros(partial_size(heads, rows, MOST_SHARED_SPLITS), dtype=torch.float32),
        )

    def tune(self, rows: int) -> None:
        """Chooses how this number of rows is done, each kernel among the others."""
        size = bucket(rows)
        if size in self._attention:
            return
        if size == 1 and self._streamed is not None:
            self._tune_head()
            return
        if size > MOST_ROWS:
            # Products are the library's, and heads are enough programs.
            self._attention[size] = self._attention_choices(size)[0]
            return
        llama, count = self.llama, len(self.llama.layers)
        # The largest first: the others are then timed beside what it became.
        products = [self._gate_up, self._qkv, self._down, self._out, self._head]
        for product in products:
            product.cuts[size] = product.choices(self._scratch, size)[0]
        choices = self._attention_choices(size)
        self._attention[size] = choices[0]
        batch = self.batch(size)
        typical = new_sequence(llama, _TYPICAL + 1) if llama.device.type == "cuda" else self.nowhere
        batch.caches.fill_(typical.offset(self.anchor))
        batch.capacity.fill_(typical.capacity)
        batch.length.fill_(typical.capacity - 1)
        for product in products:

            def run(cut: Cut, product: Product = product) -> None:
                product.cuts[size] = cut
                self.step(batch)

            key = f"{count} layers {product.key(size)}"
            product.cuts[size] = self._tuner.choose(key, product.choices(self._scratch, size), run)

        def attend(shape: DecodeShape) -> None:
            self._attention[size] = shape
            self.step(batch)

        key = f"{count} layers attention {dataclasses.astuple(llama.heads)} {llama.dtype} {size} rows"
        self._attention[size] = self._tuner.choose(key, choices, attend)

    def _tune_head(self) -> None:
        """After a prompt, where a step has no products of its own."""
        if 1 in self._head.cuts:
            return
        logits = self._zeros(1, len(self.llama.head.weight), dtype=torch.float32)

        def run(cut: Cut) -> None:
            self._head.cuts[1] = cut
            self._head(0, logits, self._memory.x, self._scratch, rows=1)

        choices = self._head.choices(self._scratch, 1)
        self._head.cuts[1] = self._tuner.choose(self._head.key(1), choices, run)

    def _attention_choices(self, rows: int) -> list[DecodeShape]:
        wanted = -(-_PROGRAMS // (rows * self.llama.heads.kv_heads))
        splits = min(_MOST_SPLITS, 1 << (wanted - 1).bit_length())
        usual = DecodeShape(splits, 64, 4, 3)
        if rows > 1:
            return [usual]
        fewer = max(1, splits // 2)
        return [
            usual,
            DecodeShape(splits, 32, 4, 3),
            DecodeShape(fewer, 64, 4, 3),
            DecodeShape(fewer, 32, 4, 4),
            DecodeShape(2 * splits, 64, 2, 2),
            # Each program one block, all of it read before the wait.
            DecodeShape(-(-_TYPICAL // 64), 64, 4, 1),
            DecodeShape(-(-_TYPICAL // 64) + 1, 64, 2, 1),
        ]

    def step(self, batch: Batch, shared: SharedParts | None = None) -> None:
        """One token a row: its keys and values into the caches, and the logits of the next.

        Args:
            batch: the rows.
            shared: positions before those of their caches, which several of them share; not for a single row.
        """
        llama, rows, memory = self.llama, batch.rows, self._memory_for(batch.rows)
        streamed = self._streamed if rows == 1 else None
        begin_step(
            streamed.x if streamed else memory.x, batch.cosine, batch.sine, batch.here,
            batch.token, batch.length, batch.position, batch.capacity,
            llama.embedding, llama.rates, llama.axes, llama.rotary_scaling,
        )  # fmt: skip
        if streamed:
            streamed(batch, self.anchor)
            return
        shape = _BESIDE_SHARED if shared is not None else self._attention[bucket(rows)]
        for index, layer in enumerate(llama.layers):
            self._product(self._qkv, index, memory.heads, memory.x, memory, rows)
            if shared is not None:
                shared_attention(
                    shared, memory.heads, self.anchor, (batch.cosine, batch.sine), llama.heads, index,
                    gains=layer.head_gains, eps=llama.eps, scale=llama.scale,
                )  # fmt: skip
            decode_attention(
                memory.attended, memory.heads, self.anchor, batch.caches, batch.capacity, batch.here,
                (batch.cosine, batch.sine), llama.heads, index,
                shape=shape, partial=self._scratch.partial, arrived=self._scratch.arrived,
                gains=layer.head_gains, eps=llama.eps, scale=llama.scale, shared=shared,
            )  # fmt: skip
            self._finish_layer(index, memory, rows)
        self._product(self._head, 0, batch.logits, memory.x, memory, rows)

    def prompt(self, tail: Tail) -> None:
        """Rows of prompts: keys and values into the caches, and the logits after the last row of each.

        Up to 64 rows are multiplied as a decode step's are; more by the library, on memory of their own.
        """
        llama, rows, heads = self.llama, tail.rows, self.llama.heads
        where = Sequences(self.anchor, tail.numbers, tail.shared)
        memory = self._memory_for(rows)
        angles = memory.x.new_empty(rows, heads.size // 2), memory.x.new_empty(rows, heads.size // 2)
        splits = max(1, _TAIL_SPLITS // tail.sequences)
        ends = part_ends(len(llama.layers))
        memory.x[:rows].copy_(tail.embeds)
        rotary_angles(*angles, tail.positions, llama.rates, llama.axes, llama.rotary_scaling)
        for index, layer in enumerate(llama.layers):
            if index in ends:
                cut()
            self._product(self._qkv, index, memory.heads, memory.x, memory, rows)
            given, attended = memory.heads[:rows], memory.attended[:rows]
            if rows <= MOST_ROWS:
                tail_attention(
                    attended, given, where, angles, heads, index,
                    gains=layer.head_gains, eps=llama.eps, scale=llama.scale,
                    splits=splits, partial=self._scratch.partial, arrived=self._scratch.arrived,
                )  # fmt: skip
            else:
                place_keys(given, where, angles, heads, index, gains=layer.head_gains, eps=llama.eps)
                prompt_attention(attended, given, where, heads, index, scale=llama.scale)
            self._finish_layer(index, memory, rows)
        last = (tail.numbers[3] + tail.numbers[4] - 1).clamp(min=0)
        self._head(0, tail.logits, memory.x.index_select(0, last), self._scratch, rows=tail.sequences)

    def _finish_layer(self, index: int, memory: Memory, rows: int) -> None:
        self._product(self._out, index, memory.x, memory.attended, memory, rows)
        self._product(self._gate_up, index, memory.inner, memory.x, memory, rows)
        self._product(self._down, index, memory.x, memory.inner, memory, rows)

    def _product(
        self, product: Product, layer: int, out: torch.Tensor, x: torch.Tensor, memory: Memory, rows: int
    ) -> None:
        if rows > MOST_ROWS:
            product.with_library(layer, out, x, memory.normed, memory.wide, rows=rows)
        else:
            product(layer, out, x, self._scratch, rows=rows)

    def _memory_for(self, rows: int) -> Memory:
        """Shared by all graphs of about so many rows: they never run at once."""
        if rows <= MOST_ROWS:
            return self._memory
        size = row_bucket(rows)
        if size not in self._wide:
            self._wide[size] = self._new_memory(size)
        return self._wide[size]

    def close(self) -> None:
        """Forgets what was made for long prompts."""
        self._wide.clear()

    def _new_memory(self, rows: int) -> Memory:
        llama = self.llama
        empty = functools.partial(torch.empty, dtype=llama.dtype, device=llama.device)
        return Memory(
            x=empty(rows, llama.hidden),
            heads=empty(rows, llama.heads.width),
            attended=empty(rows, llama.heads.heads * llama.heads.size),
            inner=empty(rows, llama.inner),
            normed=empty(rows, llama.hidden),
            wide=empty(rows, 2 * llama.inner),
        )

    def _zeros(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype or self.llama.dtype, device=self.llama.device)


def row_bucket(rows: int) -> int:
    """Rows of the graph that serves so many sequences: a power of two."""
    return 1 << (rows - 1).bit_length()


def tail_bucket(rows: int) -> int:
    """Rows of the graph that serves so many rows of a prompt.

    For four rows fewer than whole tiles the library has faster products: on an H100 by 4 % at 636 of 640 rows.
    """
    if rows <= MOST_ROWS:
        return padded_rows(rows)
    whole = -(-rows // MOST_ROWS) * MOST_ROWS
    return whole - 4 if rows <= whole - 4 else whole
