"""Which way each kernel of a pass takes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from unfuse.engines.graphed.kernels import tail_attention as tails
from unfuse.engines.graphed.kernels.decode_attention import Heads
from unfuse.engines.graphed.kernels.few_rows import FewRowsShape
from unfuse.engines.graphed.products import LIBRARY, Product, Scratch
from unfuse.engines.graphed.structure import Linear
from unfuse.engines.graphed.ways import Ways, pass_key, step_shapes, tail_shapes

HEADS = Heads(32, 8, 128)


def scratch(numbers, dtype=torch.bfloat16):
    few = torch.empty(0, dtype=dtype)
    return Scratch(normed=few, wide=few, partial=SimpleNamespace(numel=lambda: numbers), arrived=few)


def product(name, outputs=64, dtype=torch.bfloat16):
    return Product(name, [Linear(torch.zeros(outputs, 128, dtype=dtype), None)])


class Fastest:
    """Chooses what makes the pass the fastest, after having tried every candidate once."""

    def __init__(self, seconds):
        self.seconds, self.keys = seconds, []

    def choose(self, key, candidates, run):
        self.keys.append(key)
        times = []
        for candidate in candidates:
            run(candidate)
            times.append(self.seconds())
        return candidates[times.index(min(times))]


def test_each_is_tried_beside_what_was_chosen_before_it():
    products = [product("large"), product("small")]
    shapes = step_shapes(HEADS, 1, torch.bfloat16)
    ways = Ways.for_rows(16, shapes, products, scratch(2**30))
    assert (ways.attention, list(ways.cuts)) == (shapes[0], ["large", "small"])
    assert LIBRARY not in ways.cuts.values(), "beside what is often fastest"
    seen = []

    def seconds():
        # The second product's best way is another one where the first has found its own.
        large, small = ways.cuts["large"], ways.cuts["small"]
        right = isinstance(large, FewRowsShape) and large.split == 4
        return 5.0 - right - (small == LIBRARY if right else 0) - (ways.attention == shapes[2])

    tuner = Fastest(seconds)
    key = pass_key(2, HEADS, "step", 16, products)
    ways.choose(tuner, key, lambda: seen.append(dict(ways.cuts)))
    assert (ways.cuts["large"].split, ways.cuts["small"], ways.attention) == (4, LIBRARY, shapes[2])
    assert len(seen) == sum(map(len, ways.choices.values())) + len(shapes)
    assert len(set(tuner.keys)) == 3


def test_what_has_one_way_takes_it():
    ways = Ways.for_rows(16, step_shapes(HEADS, 16, torch.bfloat16), [product("one")], scratch(0))
    assert all(cut == LIBRARY or cut.split == 1 for cut in ways.choices["one"]), "no room for parts"
    assert Ways.for_rows(128, step_shapes(HEADS, 128, torch.bfloat16), (), scratch(0)).cuts == {}


@pytest.mark.parametrize("rows", [1, 16, 64, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_attention_of_a_step_has_programs_enough(rows, dtype):
    shapes = step_shapes(HEADS, rows, dtype)
    for shape in shapes:
        assert shape.splits >= 1
    usual = shapes[0]
    assert usual.splits == 16 or rows * HEADS.kv_heads * usual.splits >= 264


def test_attention_of_a_tail_fits_what_it_may_leave():
    everything = tail_shapes(HEADS, 32, scratch(2**30))
    assert tuple(everything) == tails.CANDIDATES
    some = tails.partial_size(HEADS, 32, 3, 1)
    assert {shape.splits for shape in tail_shapes(HEADS, 32, scratch(some))} == {2, 3}


def test_float32_has_one_way_which_is_soon_compiled():
    assert len(step_shapes(HEADS, 1, torch.float32)) == 1
    assert tail_shapes(HEADS, 64, scratch(2**30, torch.float32)) == [tails.IN_FLOAT32]


def test_other_work_is_remembered_by_another_name():
    def keys(layers=2, heads=HEADS, kind="step", rows=16, **more):
        key = pass_key(layers, heads, kind, rows, [product("qkv", **more)])
        return key("qkv"), key("attention")

    others = [
        keys(layers=3), keys(heads=Heads(32, 32, 128)), keys(kind="tail"), keys(rows=32), keys(outputs=128),
        keys(dtype=torch.float32),
    ]  # fmt: skip
    assert all(other != keys() for other in others)
    assert keys() == keys()
