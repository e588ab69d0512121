"""Features of any family convert to rows and back, and forms of several prompts join like their features."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unfuse.adapters.feature_rows import FeatureRows, count, join_forms, normalise, restore, split_equally
from unfuse.errors import CutError

H = 4
TENSOR = st.tuples(st.integers(1, 3), st.integers(1, 4)).map(lambda s: torch.randn(*s, H))
LISTS = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(lambda sizes: [torch.randn(n, H) for n in sizes])
POOLED = st.one_of(TENSOR, LISTS, LISTS.map(tuple), st.lists(LISTS, min_size=1, max_size=2))


def flat(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for item in value for tensor in flat(item)]


@given(POOLED, st.booleans(), st.integers(0, 2))
def test_round_trip(pooled, bare, depth):
    deep = None if bare or not depth else [pooled] * depth
    output = pooled if bare else SimpleNamespace(pooler_output=pooled, deepstack_features=deep)
    found = normalise(output)
    assert found.rows.shape == (count(found.form), H)
    assert torch.equal(found.rows, torch.cat([tensor.reshape(-1, H) for tensor in flat(pooled)]))
    assert len(found.layers) == (0 if deep is None else depth)
    back = restore(found.rows, found.layers, found.form)
    again = back if bare else back.pooler_output
    assert all(torch.equal(a, b) for a, b in zip(flat(again), flat(pooled), strict=True))
    assert isinstance(again, torch.Tensor) == isinstance(pooled, torch.Tensor)
    if deep is not None:
        assert len(back.deepstack_features) == depth


@given(st.lists(LISTS, min_size=2, max_size=3))
def test_joined_forms_group_as_the_parts_did(prompts):
    found = [normalise(SimpleNamespace(pooler_output=items)) for items in prompts]
    together = join_forms([each.form for each in found])
    back = restore(torch.cat([each.rows for each in found]), (), together).pooler_output
    assert [tensor.shape for tensor in back] == [tensor.shape for items in prompts for tensor in items]


def test_stacked_items_join_along_the_first_axis():
    forms = [normalise(torch.randn(n, 3, H)).form for n in (1, 2)]
    assert restore(torch.randn(9, H), (), join_forms(forms)).shape == (3, 3, H)


@given(POOLED, st.integers(0, 2), st.integers(1, 3))
def test_equal_prompts_are_split_again(pooled, depth, parts):
    output = SimpleNamespace(pooler_output=pooled, deepstack_features=[pooled] * depth or None)
    one = normalise(output)
    rows, layers = (one.rows.repeat(parts, 1), tuple(layer.repeat(parts, 1) for layer in one.layers))
    found = split_equally(FeatureRows(rows, layers, join_forms([one.form] * parts)), parts)
    assert [each.form for each in found] == [one.form] * parts
    for each in found:
        assert torch.equal(each.rows, one.rows)
        assert [torch.equal(a, b) for a, b in zip(each.layers, one.layers, strict=True)] == [True] * depth


def test_unequal_parts_are_not_split():
    assert split_equally(normalise(torch.randn(3, 2, H)), 2) == []
    assert split_equally(normalise([torch.randn(2, H)] * 3), 2) == []


@pytest.mark.parametrize("output", [None, SimpleNamespace(), SimpleNamespace(pooler_output=[]), 5, "features"])
def test_an_output_without_features_is_an_error(output):
    with pytest.raises(CutError, match="features: found a"):
        normalise(output)
