"""The LLaMA on rows: one new token of each of several sequences, or the end of a prompt of one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch

from unfuse.engines.graphed.caches import Sequence, new_sequence
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
from unfuse.engines.graphed.kernels.tail_attention import TailShape, tail_attention
from unfuse.engines.graphed.products import Cut, Product, bucket
from unfuse.engines.graphed.streamed import StreamedStep, streamed_sizes
from unfuse.engines.graphed.structure import Llama
from unfuse.engines.graphed.tuning import Tuner
from unfuse.engines.graphed.ways import TYPICAL, Ways, pass_key, step_shapes, tail_shapes
from unfuse.engines.graphed.workspace import Workspace
from unfuse.engines.unserved import Unserved

_BESIDE_SHARED: Final = {2: DecodeShape(1, 32, 1, 2), 4: DecodeShape(1, 32, 4, 2)}
"""By bytes a number. Where all that is long is shared: few positions a row, so small programs, many at once (137
against 275 us on an H100, for 250 rows of 50 positions)."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What a decode step reads and writes, at the same place in memory every time."""

    work: Workspace
    """Where it is run; the places of caches count from its anchor."""
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
        tensors = {name: getattr(self, name)[:rows] for name in _TENSORS}
        return dataclasses.replace(self, **tensors)


_TENSORS: Final = tuple(field.name for field in dataclasses.fields(Batch) if field.name != "work")


@dataclass(frozen=True, slots=True)
class Tail:
    """The same for rows of prompts, one sequence's after the other's, each after what is cached of it."""

    work: Workspace
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


class Network:
    """Runs a LLaMA; knows nothing of graphs, tokens or answers."""

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
        # The largest first, as ``Ways`` wants them.
        self._products = (self._gate_up, self._qkv, self._down, self._out)
        self._head = Product("head", [llama.head], gains=[llama.final_gain], eps=llama.eps)
        self._steps: dict[int, Ways[DecodeShape]] = {}
        self._tails: dict[int, Ways[TailShape]] = {}
        self._heads: dict[int, Cut] = {}
        self._work: Workspace | None = None
        self.notes: tuple[str, ...] = ()
        """Why a step of one row is not one kernel, where it could be."""
        self._streamed: StreamedStep | None = None
        if (sizes := streamed_sizes(llama)) is not None:
            try:
                self._streamed = StreamedStep(llama, sizes)
            except Unserved as reason:
                self.notes = (f"a decode step is many kernels, not one: {reason}",)

    @property
    def work(self) -> Workspace:
        """Where passes work that are made from now on."""
        if self._work is None:
            self._work = Workspace.of(self.llama, self._streamed)
        return self._work

    def batch(self, rows: int) -> Batch:
        """Memory for a decode step, all of whose rows stand for nothing yet."""
        half, work = self.llama.heads.size // 2, self.work
        return Batch(
            work=work,
            token=self._zeros(rows, dtype=torch.int64),
            length=self._zeros(rows, dtype=torch.int32),
            position=self._zeros(rows, dtype=torch.int32),
            caches=self._zeros(rows, dtype=torch.int64).fill_(work.offset(work.nowhere)),
            capacity=self._zeros(rows, dtype=torch.int32).fill_(work.nowhere.capacity),
            here=self._zeros(rows, dtype=torch.int32),
            cosine=self._zeros(rows, half),
            sine=self._zeros(rows, half),
            logits=self._zeros(rows, self.llama.head.weight.shape[0], dtype=torch.float32),
        )

    def tail(self, rows: int, sequences: int = 1, *, shared: bool = False) -> Tail:
        """Memory for rows of so many prompts, a power of two."""
        work = self.work
        nowhere = [work.offset(work.nowhere), work.nowhere.capacity, 0, 1, 0, 0, 1, 0]
        numbers = torch.tensor(nowhere, device=self.llama.device)[:, None].repeat(1, sequences)
        numbers[3:5, 1:] = torch.tensor([[0], [1]])
        return Tail(
            work=work,
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
        """Chooses how a step of this number of rows is done."""
        size, heads = bucket(rows), self.llama.heads
        self._tune_head(size)
        if size in self._steps or (size == 1 and self._streamed is not None):
            return
        # Above, products are the library's, and heads are enough programs.
        products = self._products if size <= MOST_ROWS else ()
        shapes = step_shapes(heads, size, self.llama.dtype)
        ways = self._steps[size] = Ways.for_rows(size, shapes, products, self.work.scratch)
        if not products:
            return
        batch, typical = self.batch(size), self._typical(1)
        batch.caches.fill_(batch.work.offset(typical))
        batch.capacity.fill_(typical.capacity)
        batch.length.fill_(typical.capacity - 1)
        ways.choose(self._tuner, self._key("step", size), lambda: self.step(batch))

    def tune_tail(self, rows: int, sequences: int) -> None:
        """The same for that many rows of so many prompts."""
        size, heads = bucket(rows), self.llama.heads
        self._tune_head(bucket(sequences))
        if size in self._tails or size > MOST_ROWS:
            return
        self._tune_head(1)
        scratch = self.work.scratch
        shapes = tail_shapes(heads, size, scratch)
        ways = self._tails[size] = Ways.for_rows(size, shapes, self._products, scratch)
        tail, typical = self.tail(size), self._typical(size)
        tail.numbers[:4, 0] = torch.tensor(
            [tail.work.offset(typical), typical.capacity, typical.capacity - size, size], device=tail.numbers.device
        )
        ways.choose(self._tuner, self._key("tail", size), lambda: self.prompt(tail))

    def _key(self, kind: str, rows: int) -> Callable[[str], str]:
        return pass_key(len(self.llama.layers), self.llama.heads, kind, rows, self._products)

    def _typical(self, more: int) -> Sequence:
        """As long as sequences usually are, and so many positions more; where nothing is timed, one that costs none."""
        return new_sequence(self.llama, TYPICAL + more) if self.llama.device.type == "cuda" else self.work.nowhere

    def _tune_head(self, size: int) -> None:
        """It is too large for caches, so it may be tried alone."""
        if size in self._heads or size > MOST_ROWS:
            return
        logits, work = self._zeros(size, len(self.llama.head.weight), dtype=torch.float32), self.work

        def run(cut: Cut) -> None:
            self._head(cut, 0, logits, work.few.x, work.scratch, rows=size)

        self._heads[size] = self._tuner.choose(self._head.key(size), self._head.choices(work.scratch, size), run)

    def step(self, batch: Batch, shared: SharedParts | None = None) -> None:
        """One token a row: its keys and values into the caches, and the logits of the next.

        Args:
            batch: the rows.
            shared: positions before those of their caches, which several of them share; not for a single row.
        """
        llama, rows, work = self.llama, batch.rows, batch.work
        memory, scratch, anchor = work.memory(rows), work.scratch, work.anchor
        streaming = work.streaming if rows == 1 else None
        begin_step(
            streaming.x if streaming else memory.x, batch.cosine, batch.sine, batch.here,
            batch.token, batch.length, batch.position, batch.capacity,
            llama.embedding, llama.rates, llama.axes, llama.rotary_scaling, fragments=streaming is not None,
        )  # fmt: skip
        if streaming:
            assert self._streamed is not None
            self._streamed(batch, streaming, anchor)
            return
        size = bucket(rows)
        ways = self._steps[size]
        cuts = {**ways.cuts, self._head.name: self._heads[size]} if size in self._heads else ways.cuts
        shape = _BESIDE_SHARED[llama.dtype.itemsize] if shared is not None else ways.attention
        for index, layer in enumerate(llama.layers):
            self._product(self._qkv, cuts, index, memory.heads, memory.x, work, rows)
            if shared is not None:
                shared_attention(
                    shared, memory.heads, anchor, (batch.cosine, batch.sine), llama.heads, index,
                    gains=layer.head_gains, eps=llama.eps, scale=llama.scale,
                )  # fmt: skip
            decode_attention(
                memory.attended, memory.heads, anchor, batch.caches, batch.capacity, batch.here,
                (batch.cosine, batch.sine), llama.heads, index,
                shape=shape, partial=scratch.partial, arrived=scratch.arrived,
                gains=layer.head_gains, eps=llama.eps, scale=llama.scale, shared=shared,
            )  # fmt: skip
            self._finish_layer(cuts, index, work, rows)
        self._product(self._head, cuts, 0, batch.logits, memory.x, work, rows)

    def prompt(self, tail: Tail) -> None:
        """Rows of prompts: keys and values into the caches, and the logits after the last row of each.

        Up to 64 rows are multiplied as a decode step's are; more by the library, on memory of their own.
        """
        llama, rows, heads, work = self.llama, tail.rows, self.llama.heads, tail.work
        where = Sequences(work.anchor, tail.numbers, tail.shared)
        memory, scratch = work.memory(rows), work.scratch
        angles = memory.x.new_empty(rows, heads.size // 2), memory.x.new_empty(rows, heads.size // 2)
        ways = self._tails.get(rows)
        cuts = ways.cuts if ways is not None else {}
        ends = part_ends(len(llama.layers))
        memory.x[:rows].copy_(tail.embeds)
        rotary_angles(*angles, tail.positions, llama.rates, llama.axes, llama.rotary_scaling)
        for index, layer in enumerate(llama.layers):
            if index in ends:
                cut()
            self._product(self._qkv, cuts, index, memory.heads, memory.x, work, rows)
            given, attended = memory.heads[:rows], memory.attended[:rows]
            if ways is not None:
                shape = dataclasses.replace(ways.attention, splits=max(1, ways.attention.splits // tail.sequences))
                tail_attention(
                    attended, given, where, angles, heads, index,
                    gains=layer.head_gains, eps=llama.eps, scale=llama.scale,
                    shape=shape, partial=scratch.partial, arrived=scratch.arrived,
                )  # fmt: skip
            else:
                place_keys(given, where, angles, heads, index, gains=layer.head_gains, eps=llama.eps)
                prompt_attention(attended, given, where, heads, index, scale=llama.scale)
            self._finish_layer(cuts, index, work, rows)
        last = (tail.numbers[3] + tail.numbers[4] - 1).clamp(min=0)
        way = self._heads[bucket(tail.sequences)]
        self._head(way, 0, tail.logits, memory.x.index_select(0, last), scratch, rows=tail.sequences)

    def _finish_layer(self, cuts: Mapping[str, Cut], index: int, work: Workspace, rows: int) -> None:
        memory = work.memory(rows)
        self._product(self._out, cuts, index, memory.x, memory.attended, work, rows)
        self._product(self._gate_up, cuts, index, memory.inner, memory.x, work, rows)
        self._product(self._down, cuts, index, memory.x, memory.inner, work, rows)

    def _product(
        self,
        product: Product,
        cuts: Mapping[str, Cut],
        layer: int,
        out: torch.Tensor,
        x: torch.Tensor,
        work: Workspace,
        rows: int,
    ) -> None:
        if (way := cuts.get(product.name)) is not None:
            product(way, layer, out, x, work.scratch, rows=rows)
        else:
            memory = work.memory(rows)
            product.with_library(layer, out, x, memory.normed, memory.wide, rows=rows)

    def close(self) -> None:
        """Lets go of the memory that passes work in, which belongs to those that are still used."""
        self._work = None

    def _zeros(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype or self.llama.dtype, device=self.llama.device)


def tail_bucket(rows: int) -> int:
    """Rows of the graph that serves so many rows of a prompt.

    For four rows fewer than whole tiles the library has faster products: on an H100 by 4 % at 636 of 640 rows.
    """
    if rows <= MOST_ROWS:
        return padded_rows(rows)
    whole = -(-rows // MOST_ROWS) * MOST_ROWS
    return whole - 4 if rows <= whole - 4 else whole
