from __future__ import annotations

import pytest
import torch

from unfuse.engines.graphed.cuda_graphs import GraphedCall, split_graph, split_points

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def test_parts_grow_from_one_layer():
    assert sorted(split_points(32)) == [1, 3, 7, 15, 23, 31]
    assert split_points(1) == frozenset()
    assert split_points(2) == {1}


def test_without_a_device_the_function_is_called():
    called = []

    def work():
        called.append(1)
        split_graph()

    run = GraphedCall(work, torch.device("cpu"))
    assert called == []
    run()
    run()
    assert called == [1, 1]


@pytest.mark.cuda
@CUDA
def test_a_failed_capture_restores_the_stream():
    before, x = torch.cuda.current_stream(), torch.zeros(4, device="cuda")
    calls = []

    def looks():
        calls.append(1)
        x.add_(1)
        if len(calls) == 2:
            x.sum().item()  # no host may look while it is captured

    with pytest.raises(RuntimeError):
        GraphedCall(looks, x.device)
    assert torch.cuda.current_stream() == before
    run = GraphedCall(lambda: x.add_(1), x.device)
    x.zero_()
    run()
    assert x.tolist() == [1.0] * 4


@pytest.mark.cuda
@CUDA
def test_split_graphs_do_the_same_work():
    x = torch.zeros(4, device="cuda")

    def work():
        y = x + 1
        split_graph()
        x.copy_(2 * y)

    run = GraphedCall(work, x.device)
    assert len(run._graphs) == 2
    x.zero_()
    run()
    run()
    assert x.tolist() == [6.0] * 4
