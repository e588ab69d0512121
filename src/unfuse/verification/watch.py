"""Count calls of the vision side.

Hooks on its inner modules see a call that bypasses the top module. A dispatch mode counts convolutions, because no
language model has them: it sees a copy of the tower that is no module of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


class VisionCalls:
    """Counts of one watched region."""

    def __init__(self) -> None:
        self.by_name: dict[str, int] = {}
        """Calls of each vision module."""
        self.inner = 0
        """Calls of any module below them."""
        self.convolutions = 0

    @property
    def is_empty(self) -> bool:
        """True if the vision side was not called."""
        return not (sum(self.by_name.values()) or self.inner or self.convolutions)

    def __str__(self) -> str:
        calls = ", ".join(f"{name} {count}" for name, count in self.by_name.items())
        return f"{calls}, convolutions {self.convolutions}"


class _Convolutions(TorchDispatchMode):
    def __init__(self, calls: VisionCalls):
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self._calls = calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "convolution" in func.__name__:
            self._calls.convolutions += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def watch_vision(modules: Mapping[str, nn.Module]) -> Iterator[VisionCalls]:
    """Count calls of the vision side while the body runs."""
    calls = VisionCalls()
    calls.by_name = dict.fromkeys(modules, 0)
    handles = []

    def count(name: str) -> Any:
        def hook(*_: Any) -> None:
            calls.by_name[name] += 1

        return hook

    def count_inner(*_: Any) -> None:
        calls.inner += 1

    for name, module in modules.items():
        handles.append(module.register_forward_pre_hook(count(name)))
        handles += [inner.register_forward_pre_hook(count_inner) for inner in module.modules() if inner is not module]
    try:
        with _Convolutions(calls):
            yield calls
    finally:
        for handle in handles:
            handle.remove()
