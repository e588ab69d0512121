"""How many actors there are, and that the smallest pools always find room."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unfuse.batch_inference.cluster.pools import ON_DEVICE, POOLS, PoolSize, actor_resources, parse_pools, pool_sizes
from unfuse.batch_inference.cluster.settings import RaySettings, ray_settings
from unfuse.errors import InputError


def test_pools_are_parsed():
    assert parse_pools("load=4, answer=1-3") == {"load": PoolSize(4, 4), "answer": PoolSize(1, 3)}
    assert [str(size) for size in parse_pools("load=4,answer=1-3").values()] == ["4", "1-3"]


@pytest.mark.parametrize("text", ["", "load", "load=", "load=0", "load=3-2", "load=-1", "load=1,load=2", "decode=1"])
def test_malformed_pools(text):
    with pytest.raises(InputError, match="ray-pools"):
        parse_pools(text)


@given(
    cpus=st.integers(1, 300), gpus=st.integers(0, 16), on_gpu=st.booleans(),
    given_sizes=st.dictionaries(st.sampled_from(POOLS), st.integers(1, 40).map(lambda n: PoolSize(n, n + 2))),
)  # fmt: skip
def test_the_smallest_pools_find_room(cpus, gpus, on_gpu, given_sizes):
    sizes = pool_sizes(given_sizes, cpus, gpus, on_gpu=on_gpu)
    assert set(sizes) == set(POOLS)
    assert all(1 <= size.least <= size.most for size in sizes.values())
    assert given_sizes.items() <= sizes.items()
    parts = actor_resources(sizes, cpus, gpus, on_gpu=on_gpu)
    assert placed([parts[name].cpus for name in POOLS for _ in range(sizes[name].least)], cpus)
    wanted = [parts[name].gpus for name in ON_DEVICE for _ in range(sizes[name].least)]
    if on_gpu and gpus:
        assert placed(wanted, gpus)
    assert all(part > 0 for part in wanted) == on_gpu
    assert not parts["load"].gpus


def placed(parts, whole):
    """Whether each part fits into one of so many wholes, first come first served."""
    left = [1.0] * whole
    for part in parts:
        node = next((i for i, room in enumerate(left) if room >= part - 1e-9), None)
        if node is None:
            return False
        left[node] -= part
    return True


def test_two_cores_and_a_machine_of_eight_gpus():
    laptop = pool_sizes({}, 2, 0, on_gpu=False)
    assert {name: str(size) for name, size in laptop.items()} == dict.fromkeys(POOLS, "1")
    host = pool_sizes({}, 128, 8, on_gpu=True)
    assert {name: str(size) for name, size in host.items()} == {
        "load": "1-60", "preprocess": "1-60", "encode": "2", "answer": "6",
    }  # fmt: skip
    one = actor_resources(pool_sizes({}, 16, 1, on_gpu=True), 16, 1, on_gpu=True)
    assert (one["encode"].gpus, one["answer"].gpus, one["load"].cpus) == (0.5, 0.5, 1.0)


def test_options():
    assert ray_settings(None, None, {"--workers": 3}) is None
    expected = RaySettings(address="auto", pools={"load": PoolSize(2, 2)})
    assert ray_settings("auto", "load=2", {"--workers": None}) == expected
    for address in ("local", "10.0.0.1:6379", "head.example:6379", "[::1]:6379"):
        assert ray_settings(address, None, {}).address == address
    for address in ("demo", "random:eventgpt-7b", "http://head:1", ""):
        with pytest.raises(InputError, match="MODEL before --ray"):
            ray_settings(address, None, {})
    with pytest.raises(InputError, match="Ray Client"):
        ray_settings("ray://head:10001", None, {})
    with pytest.raises(InputError, match="found no ray"):
        ray_settings(None, "load=2", {})
    with pytest.raises(InputError, match="--workers"):
        ray_settings("local", None, {"--workers": 0})
