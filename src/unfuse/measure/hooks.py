"""Sub-spans by hooks: every call of a module is a span of the running stage.

A span is two marks on the device's own queue (events on CUDA) around the call, read after the stage's end has
synchronised; no call waits. Its host time is the time between the two hooks on the host: on an asynchronous device,
the time to launch the work and not to do it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from unfuse.measure.clock import span

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def module_spans(modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Mark each call of each module as a span of its name while the body runs; calls of one module are summed."""
    handles = []
    for name, module in modules.items():
        opened: list[AbstractContextManager[None]] = []
        before, after = _pair(name, opened)
        handles += [
            module.register_forward_pre_hook(before, prepend=True),
            module.register_forward_hook(after, always_call=True),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _pair(name: str, opened: list[AbstractContextManager[None]]) -> tuple[Any, Any]:
    def before(*_: Any) -> None:
        entered = span(name)
        entered.__enter__()
        opened.append(entered)

    def after(*_: Any) -> None:
        opened.pop().__exit__(None, None, None)

    return before, after
