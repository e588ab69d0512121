"""A received value equals the sent value, tensors bit for bit."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack, contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from unfuse.batch_inference.wire import receive, send
from unfuse.processes import Channel, ClosedError

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.int64, torch.uint8, torch.bool)


@contextmanager
def channels():
    with ExitStack() as stack:
        yield [stack.enter_context(Channel(each)) for each in socket.socketpair()]


def sent(value):
    with channels() as (mine, theirs):
        thread = threading.Thread(target=send, args=(theirs, value))
        thread.start()
        found = receive(mine)
        thread.join()
    return found


@examples(30)
@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=4), st.text(), st.integers(0, 2**31))
def test_values_with_tensors(dtype, shape, text, seed):
    tensor = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    text_back, back = sent((text, {"t": tensor}))
    assert text_back == text
    assert back["t"].dtype == dtype
    assert torch.equal(back["t"], tensor)


def test_large_tensors_and_parts_of_tensors():
    tensor = torch.randn(5, 3, 336, 336).to(torch.bfloat16)
    whole, part = sent([tensor, tensor.transpose(0, 1)[1]])
    assert torch.equal(whole, tensor)
    assert torch.equal(part, tensor[:, 1])


def test_a_tensor_referenced_twice_is_sent_once():
    tensor = torch.arange(10)
    one, other = sent((tensor, tensor))
    assert one is other


@pytest.mark.parametrize("after", [0, 3, 20, 100])
def test_an_end_within_a_message(after):
    with channels() as (probe, far), channels() as (mine, theirs):
        send(far, {"a": torch.arange(100)})
        theirs.socket.sendall(probe.socket.recv(after) if after else b"")
        theirs.close()
        with pytest.raises(ClosedError):
            receive(mine)


def test_nobody_listens():
    with channels() as (mine, theirs):
        theirs.close()
        with pytest.raises(ClosedError):
            send(mine, torch.zeros(10_000_000))
