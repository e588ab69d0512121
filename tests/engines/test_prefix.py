"""The longest common prefix of two prompts against its definition."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from unfuse.engines.prefix import common_prefix

keys = st.lists(st.integers(-3, 5), max_size=12)


@given(st.lists(st.integers(-3, 5), max_size=200), keys, keys, st.booleans())
def test_common_prefix_is_its_definition(both, a, b, same):
    a, b = both + a, both + b
    length = common_prefix(a, b, same_features=same)
    assert a[:length] == b[:length]
    assert same or all(key >= 0 for key in a[:length])
    if length < min(len(a), len(b)):
        assert a[length] != b[length] or (a[length] < 0 and not same)
