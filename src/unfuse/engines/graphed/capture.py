"""The device's work of one call, captured once and replayed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, Final, Self

import torch

_LARGEST_PART: Final = 8
"""Layers that are launched together."""


class Captured:
    """Runs the same launches on the same memory again and again; where there is no CUDA device, calls the function."""

    def __init__(
        self,
        work: Callable[[], None],
        device: torch.device,
        pool: Any = None,
        generator: torch.Generator | None = None,
    ):
        """Runs the work once, which compiles what it needs, and captures it as graphs that end where it says ``cut``.

        Args:
            work: launches on fixed memory, no look at the device.
            device: where.
            pool: memory that graphs share which never run at once.
            generator: from which it draws, if it does.
        """
        self._work = work
        self._graphs: list[torch.cuda.CUDAGraph] = []
        if device.type != "cuda":
            return
        with torch.cuda.device(device):
            beside = _beside(torch.cuda.current_device())
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                work()
            torch.cuda.current_stream().wait_stream(beside)
            # A capture that fails leaves its stream the current one, which this takes back.
            with torch.cuda.stream(beside), _Capture(beside, pool, generator) as capture:
                work()
            self._graphs = capture.graphs

    def __call__(self) -> None:
        """Replays it; returns before the device is done."""
        for graph in self._graphs:
            graph.replay()
        if not self._graphs:
            self._work()


def go_to(device: torch.device) -> None:
    """Makes the device the thread's current one: kernels and events go there, wherever their tensors lie."""
    if device.type == "cuda" and torch.cuda.current_device() != device.index:
        torch.cuda.set_device(device)


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """No gradients, and no inference tensors either, whatever the caller is in: graphs' memory is written later too."""
    # Its end would be the beginning of gradients, so it comes first.
    with torch.inference_mode(False), torch.no_grad():
        yield


@functools.cache
def _beside(index: int) -> torch.cuda.Stream:
    """One for all: the library keeps 32 MiB for every stream that has ever multiplied on it.

    What is captured has run on the same stream before. Memory that the library first asks for during a capture would
    lie in the graphs' pool, and a pool whose graphs are gone cannot be used again while something lies in it.
    """
    return torch.cuda.Stream(index)


class _Capture:
    """What is launched in the body becomes graphs, one after the other."""

    def __init__(self, stream: torch.cuda.Stream, pool: Any, generator: torch.Generator | None):
        self.graphs: list[torch.cuda.CUDAGraph] = []
        self._stream = stream
        self._pool = pool
        self._generator = generator
        self._open = ExitStack()

    def begin(self) -> None:
        graph = torch.cuda.CUDAGraph()
        if self._generator is not None:
            graph.register_generator_state(self._generator)
        # Other threads may pin memory and copy meanwhile.
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


def cut() -> None:
    """Ends the graph that is being captured, if one is, and begins the next.

    Launching a graph takes the host longer the more is in it, and the device does not wait for later ones.
    """
    capture = _current.get()
    if capture is not None:
        capture.end()
        capture.begin()


def part_ends(layers: int) -> frozenset[int]:
    """After how many layers to cut: the device waits for the first part only, so the parts grow from one layer."""
    ends, done, size = set(), 0, 1
    while done + size < layers:
        done += size
        ends.add(done)
        size = min(2 * size, _LARGEST_PART)
    return frozenset(ends)
