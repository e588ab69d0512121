"""Operations of matrix products and convolutions, counted in all threads and declared by kernels."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from tests.examples import examples
from unfuse.measure.products import (
    Products,
    counting_all_threads,
    counting_this_thread,
    declare,
    flops_text,
    linear,
    not_executed,
)

size = st.integers(1, 6)


def counted(work):
    """Return the counts of both ways, which must be equal; torch's own counter is a third."""
    with torch.no_grad():
        with counting_all_threads() as everywhere:
            work()
        with counting_this_thread() as here:
            work()
    assert everywhere.products == here.products
    return everywhere.products.linear, everywhere.products.batched


def by_torch(work):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@given(rows=size, depth=size, columns=size, batch=size)
@examples(10)
def test_products_have_two_operations_per_term(rows, depth, columns, batch):
    a, b = torch.ones(batch, rows, depth), torch.ones(depth, columns)
    flops = 2 * batch * rows * depth * columns
    assert counted(lambda: functional.linear(a, b.t(), torch.ones(columns))) == (flops, 0)
    assert counted(lambda: a @ b) == (flops, 0)
    assert counted(lambda: torch.bmm(a, b.expand(batch, -1, -1))) == (0, flops)
    assert counted(lambda: a[0] @ b) == (flops // batch, 0)
    assert counted(lambda: torch.addmm(torch.ones(columns), a[0], b)) == (flops // batch, 0)
    assert counted(lambda: torch.mv(a[0], b[:, 0])) == (2 * rows * depth, 0)
    assert by_torch(lambda: a[0] @ b) == flops // batch


@given(
    side=st.integers(5, 9), kernel=st.integers(1, 3), stride=st.integers(1, 3), padding=st.integers(0, 2),
    groups=st.sampled_from([1, 2]), dilation=st.integers(1, 2), axes=st.integers(1, 3),
)  # fmt: skip
@examples(15)
def test_convolutions_are_counted_as_torch_counts_them(side, kernel, stride, padding, groups, dilation, axes):
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    layer = kind(4, 6, kernel, stride=stride, padding=padding, groups=groups, dilation=dilation)
    image = torch.ones(2, 4, *[side] * axes)
    assert counted(lambda: layer(image)) == (by_torch(lambda: layer(image)), 0)


def test_transposed_convolutions_are_counted():
    layer = nn.ConvTranspose2d(4, 6, 3, stride=2)
    image = torch.ones(2, 4, 5, 5)
    assert counted(lambda: layer(image))[0] == by_torch(lambda: layer(image))


@pytest.mark.parametrize("grouped", [False, True])
def test_attention_is_counted_once(grouped):
    q, k = torch.ones(2, 4, 5, 8), torch.ones(2, 2 if grouped else 4, 7, 8)
    expected = 0, 2 * 2 * 4 * 5 * 7 * 8 * 2
    assert counted(lambda: functional.scaled_dot_product_attention(q, k, k, enable_gqa=grouped)) == expected
    explicit = lambda: torch.softmax(q @ q.transpose(-1, -2), -1) @ q  # noqa: E731
    assert counted(explicit) == (0, 2 * 2 * 4 * 5 * 5 * 8 * 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_network_is_counted_alike_in_every_dtype(dtype):
    network = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)).to(dtype)
    assert counted(lambda: network(torch.ones(3, 8, dtype=dtype))) == (2 * 3 * (8 * 16 + 16 * 4), 0)


def test_a_thread_that_was_there_before_is_counted():
    start, done = threading.Event(), threading.Event()

    def work():
        start.wait()
        torch.ones(3, 4) @ torch.ones(4, 5)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    with counting_all_threads() as count:
        torch.ones(2, 2) @ torch.ones(2, 2)
        start.set()
        done.wait()
    thread.join()
    assert count.products.by_width == {4: 2 * 3 * 4 * 5, 2: 2 * 8}
    assert list(count.calls[4]) == ["matmul [3, 4] x [4, 5] in another thread"]
    assert list(count.calls[2]) == ["matmul [2, 2] x [2, 2]"]


def test_meta_tensors_are_counted():
    with counting_this_thread() as count:
        nn.Linear(8, 16, device="meta")(torch.ones(3, 8, device="meta"))
    assert count.products.by_width == {8: 2 * 3 * 8 * 16}


def test_declared_work_is_counted_where_it_runs():
    with counting_all_threads() as count:
        declare("kernel", Products({4: 100}))
        with not_executed():
            declare("kernel", Products({4: 1}))
        with counting_this_thread() as inner:
            declare("other", Products(batched=7))
    declare("kernel", Products({4: 1000}))
    assert count.products == Products({4: 100}, 7)
    assert inner.products == Products({}, 7)
    assert count.calls == {4: {"kernel": 100}, None: {"other": 7}}


def test_products_add_and_scale_by_width():
    assert (Products({4: 10}, 1) + Products({8: 1, 4: 1}, 2)) * 2 == Products({4: 22, 8: 2}, 6)
    joined = linear(3, 8, 4) + linear(3, 8, 12)
    assert joined == linear(3, 8, 16)
    assert (joined.linear, joined.total) == (2 * 3 * 8 * 16, 2 * 3 * 8 * 16)


def test_operations_have_a_unit():
    assert [flops_text(n) for n in (0, 999, 1500, 2.5e12, 3e18)] == [
        "0 FLOP", "999 FLOP", "1.5 kFLOP", "2.5 TFLOP", "3000 PFLOP",
    ]  # fmt: skip
