"""The device's work of one call, captured once and replayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


class Captured:
    """Runs the same launches on the same memory again and again; where there is no CUDA device, calls the functions."""

    def __init__(
        self,
        parts: Sequence[Callable[[], None]],
        device: torch.device,
        pool: Any = None,
        generator: torch.Generator | None = None,
    ):
        """Runs the parts once, which compiles what they need, and captures each as a graph.

        Args:
            parts: in order; launches on fixed memory, no look at the device. Launching a graph takes the host longer
                the more is in it, and the device does not wait for later parts to be launched.
            device: where.
            pool: memory that graphs share which never run at once.
            generator: from which they draw, if they do.
        """
        self._parts = parts
        self._graphs: list[torch.cuda.CUDAGraph] = []
        if device.type != "cuda":
            return
        with torch.cuda.device(device):
            beside = torch.cuda.Stream()
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                for part in parts:
                    part()
            torch.cuda.current_stream().wait_stream(beside)
            torch.cuda.synchronize()
            for part in parts:
                graph = torch.cuda.CUDAGraph()
                if generator is not None:
                    graph.register_generator_state(generator)
                with torch.cuda.graph(graph, pool=pool):
                    part()
                self._graphs.append(graph)

    def __call__(self) -> None:
        """Replays them; returns before the device is done."""
        for graph in self._graphs:
            graph.replay()
        if not self._graphs:
            for part in self._parts:
                part()
