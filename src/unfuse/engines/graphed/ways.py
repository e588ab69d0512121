"""How each kernel of a pass over a few rows is done: found by trying, among the others of the pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Final, Generic, TypeVar

import torch

from unfuse.engines.graphed.kernels import tail_attention as tails
from unfuse.engines.graphed.kernels.decode_attention import DecodeShape, Heads
from unfuse.engines.graphed.kernels.tail_attention import TailShape
from unfuse.engines.graphed.products import Cut, Product, Scratch
from unfuse.engines.graphed.tuning import Tuner

TYPICAL: Final = 703
"""Cached positions while ways are tried: what is fast depends on what stands beside it."""
_PROGRAMS: Final = 264
"""Of attention, at least: two for each multiprocessor of the largest chips."""
_MOST_SPLITS: Final = 16

Shape = TypeVar("Shape", DecodeShape, TailShape)


@dataclass(slots=True)
class Ways(Generic[Shape]):
    """What was chosen, so far, for a pass of so many rows."""

    shapes: Sequence[Shape]
    """Ways of attention; the first one always works."""
    choices: dict[str, list[Cut]]
    """Ways of each product; the first one always works."""
    attention: Shape
    cuts: dict[str, Cut]

    @classmethod
    def for_rows(cls, rows: int, shapes: Sequence[Shape], products: Sequence[Product], scratch: Scratch) -> Ways[Shape]:
        """What is often fastest, for the others to be tried beside.

        Args:
            rows: padded.
            shapes: of attention.
            products: the largest first: the others are then timed beside what it became.
            scratch: which they share.
        """
        choices = {product.name: product.choices(scratch, rows) for product in products}
        cuts = {name: each[min(1, len(each) - 1)] for name, each in choices.items()}
        return Ways(shapes, choices, shapes[0], cuts)

    def choose(self, tuner: Tuner, key: Callable[[str], str], run: Callable[[], None]) -> None:
        """Tries them one after the other.

        Args:
            tuner: times and remembers.
            key: name of a product's or attention's choice, for whoever remembers.
            run: launches the whole pass as chosen so far.
        """

        def multiply(name: str) -> Callable[[Cut], None]:
            def with_cut(cut: Cut) -> None:
                self.cuts[name] = cut
                run()

            return with_cut

        def attend(shape: Shape) -> None:
            self.attention = shape
            run()

        for name, cuts in self.choices.items():
            self.cuts[name] = tuner.choose(key(name), cuts, multiply(name))
        self.attention = tuner.choose(key("attention"), self.shapes, attend)


def step_shapes(heads: Heads, rows: int, dtype: torch.dtype) -> list[DecodeShape]:
    """Ways of attention in a decode step of so many sequences."""
    wanted = -(-_PROGRAMS // (rows * heads.kv_heads))
    splits = min(_MOST_SPLITS, 1 << (wanted - 1).bit_length())
    if dtype == torch.float32:
        # See ``tail_attention``.
        return [DecodeShape(splits, 32, 4, 3)]
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
        DecodeShape(-(-TYPICAL // 64), 64, 4, 1),
        DecodeShape(-(-TYPICAL // 64) + 1, 64, 2, 1),
    ]


def tail_shapes(heads: Heads, rows: int, scratch: Scratch) -> list[TailShape]:
    """The same for so many rows of a prompt."""
    most = scratch.partial.numel()
    shapes = (tails.IN_FLOAT32,) if scratch.normed.dtype == torch.float32 else tails.CANDIDATES
    return [shape for shape in shapes if tails.partial_size(heads, rows, shape.splits, 1) <= most]


def pass_key(layers: int, heads: Heads, kind: str, rows: int, products: Sequence[Product]) -> Callable[[str], str]:
    """Names for what is remembered of a pass: the same for the same work.

    Args:
        layers: of the model.
        heads: their numbers and size.
        kind: ``step`` or ``tail``.
        rows: padded.
        products: whose shapes and dtype they bear.
    """
    names = {product.name: product.key(rows) for product in products}
    dtype = products[0].linears[0].weight.dtype
    names["attention"] = f"attention {astuple(heads)} {dtype} {rows} rows"
    return lambda name: f"{layers} layers {kind} {names[name]}"
