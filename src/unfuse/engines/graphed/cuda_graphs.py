"""CUDA graphs: the launches of one call, captured once and replayed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, Final, Self

import torch

from unfuse.measure.products import Products, counting_this_thread, declare, not_executed

_MAX_LAYERS: Final = 8
"""Layers of one graph of a split capture."""


class GraphedCall:
    """A function as CUDA graphs. Without a CUDA device a call runs the function itself."""

    def __init__(
        self,
        work: Callable[[], None],
        device: torch.device,
        pool: Any = None,
    ):
        """Run the function once to compile its kernels, then capture the function as one or several CUDA graphs.

        The function begins another graph by a call of ``split_graph``.

        Args:
            work: launches kernels on tensors at fixed addresses, and does not synchronise.
            device: the device.
            pool: memory pool of graphs that never run at the same time.
        """
        self._work = work
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._products = Products()
        """Matrix products of a replay: as many as the first run executes."""
        if device.type != "cuda":
            return
        with torch.cuda.device(device):
            stream = _capture_stream(torch.cuda.current_device())
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream), counting_this_thread() as count:
                work()
            self._products = count.products
            torch.cuda.current_stream().wait_stream(stream)
            # A failed capture leaves its stream current; the context manager restores the previous one.
            with torch.cuda.stream(stream), not_executed(), _Capture(stream, pool) as capture:
                work()
            self._graphs = capture.graphs

    def __call__(self) -> None:
        """Launch the graphs; does not wait for the device."""
        if not self._graphs:
            self._work()
            return
        declare("CUDA graph", self._products)
        for graph in self._graphs:
            graph.replay()


def set_device(device: torch.device) -> None:
    """Make the device current: Triton launches kernels, and events are recorded, on the current device."""
    if device.type == "cuda" and torch.cuda.current_device() != device.index:
        torch.cuda.set_device(device)


@contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Leave the caller's inference mode, without gradients.

    Tensors made in inference mode cannot be written outside of it, and graphs write their tensors in both modes.
    """
    # Leaving inference mode enables gradients, so no_grad comes second.
    with torch.inference_mode(False), torch.no_grad():
        yield


@functools.cache
def _capture_stream(index: int) -> torch.cuda.Stream:
    """Return the stream for all captures on a device.

    cuBLAS keeps a workspace of 32 MiB for every stream, so all captures share a stream. A function runs on this stream
    before the capture, so that cuBLAS allocates the workspace outside of the graphs' memory pool. A workspace inside
    the pool would outlive the graphs, and the pool's memory could not be reused.
    """
    return torch.cuda.Stream(index)


class _Capture:
    """Captures the launches of its body as one or several graphs."""

    def __init__(self, stream: torch.cuda.Stream, pool: Any):
        self.graphs: list[torch.cuda.CUDAGraph] = []
        self._stream = stream
        self._pool = pool
        self._open = ExitStack()

    def begin(self) -> None:
        graph = torch.cuda.CUDAGraph()
        # Other threads may pin memory and copy during the capture.
        self._open.enter_context(
            torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local")
        )
        self.graphs.append(graph)

    def end(self) -> None:
        self._open.close()

    def __enter__(self) -> Self:
        self.begin()
        self._token = _current.set(self)
        return self

    def __exit__(self, *error: object) -> None:
        _current.reset(self._token)
        self.end()


_current: ContextVar[_Capture | None] = ContextVar("capture", default=None)


def split_graph() -> None:
    """End the graph that is being captured, if any, and begin the next one.

    The host needs longer to launch a larger graph; the device starts on the first part while the next is launched.
    """
    capture = _current.get()
    if capture is not None:
        capture.end()
        capture.begin()


def split_points(layers: int) -> frozenset[int]:
    """Return the split points as layer counts: parts of 1, 2, 4, 8, 8, ... layers let the device start early."""
    ends, done, size = set(), 0, 1
    while done + size < layers:
        done += size
        ends.add(done)
        size = min(2 * size, _MAX_LAYERS)
    return frozenset(ends)
