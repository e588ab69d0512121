"""Count the floating-point operations of matrix products and convolutions, by all threads of the process.

torch's profiler sees every operator of every thread with the shapes of its tensors. Kernels outside of torch declare
their work (``declare``), and a CUDA graph declares at each replay what was counted when it was made.

A product of an ``[m, k]`` and a ``[k, n]`` matrix has 2 m n k operations, as in torch's ``FlopCounterMode``.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

import torch
from torch.utils._python_dispatch import TorchDispatchMode

Shape = Sequence[int]
_UNITS: Final = ("", "k", "M", "G", "T", "P")


@dataclass(frozen=True, slots=True)
class Products:
    """Operations of matrix products and convolutions."""

    by_width: Mapping[int, int] = field(default_factory=dict)
    """Operations of linear layers and convolutions, with one matrix for all rows, by the width of their input. Layers
    of one input that are joined into one product keep their width."""
    batched: int = 0
    """Operations of products with a matrix for each element of a batch: attention."""

    @property
    def linear(self) -> int:
        """Operations of linear layers and convolutions."""
        return sum(self.by_width.values())

    @property
    def total(self) -> int:
        """All operations."""
        return self.linear + self.batched

    def __add__(self, other: Products) -> Products:
        widths = self.by_width.keys() | other.by_width.keys()
        by_width = {width: self.by_width.get(width, 0) + other.by_width.get(width, 0) for width in sorted(widths)}
        return Products(by_width, self.batched + other.batched)

    def __mul__(self, times: float) -> Products:
        return Products({width: round(n * times) for width, n in self.by_width.items()}, round(self.batched * times))


def linear(rows: int, width: int, columns: int) -> Products:
    """Return the work of a linear layer: ``[rows, width]`` times ``[width, columns]``."""
    return Products({width: 2 * rows * width * columns} if rows else {})


@dataclass(slots=True)
class ProductCount:
    """Operations of one counted region."""

    products: Products = field(default_factory=Products)
    calls: dict[int | None, Counter[str]] = field(default_factory=dict)
    """Operations by the width of the input (None for batched products), then by operator and shapes."""

    def add(self, call: str, products: Products) -> None:
        """Add a call of an operator."""
        self.products += products
        groups: dict[int | None, int] = dict(products.by_width.items())
        if products.batched:
            groups[None] = products.batched
        for width, flops in groups.items():
            self.calls.setdefault(width, Counter())[call] += flops


def flops_text(flops: float) -> str:
    """Return a number of operations with a unit."""
    power = min((len(str(int(abs(flops)))) - 1) // 3, len(_UNITS) - 1)
    return f"{flops / 1000**power:.4g} {_UNITS[power]}FLOP"


def _matrices(left: int, right: int) -> Callable[[Sequence[Shape], Sequence[Any]], Products]:
    """Return the operations of a product of two matrices, by the indices of the arguments."""

    def count(shapes: Sequence[Shape], _: Sequence[Any]) -> Products:
        # The right side is a matrix, a vector, or a matrix for each group of rows, of which a row meets one.
        columns = shapes[right][-1] if len(shapes[right]) > 1 else 1
        return linear(prod(shapes[left][:-1]), shapes[left][-1], columns)

    return count


def _linear(shapes: Sequence[Shape], _: Sequence[Any]) -> Products:
    columns = shapes[1][0] if len(shapes[1]) > 1 else 1
    return linear(prod(shapes[0][:-1]), shapes[0][-1], columns)


def _matmul(shapes: Sequence[Shape], values: Sequence[Any]) -> Products:
    left, right = shapes[0], shapes[1]
    if len(right) <= 2:
        return _matrices(0, 1)(shapes, values)
    rows, depth = (left[-2] if len(left) > 1 else 1), right[-2]
    batch = prod(torch.broadcast_shapes(tuple(left[:-2]), tuple(right[:-2])))
    return Products(batched=2 * batch * rows * depth * right[-1])


def _batched(left: int, right: int) -> Callable[[Sequence[Shape], Sequence[Any]], Products]:
    def count(shapes: Sequence[Shape], _: Sequence[Any]) -> Products:
        return Products(batched=2 * prod(shapes[left]) * shapes[right][-1])

    return count


def _attention(shapes: Sequence[Shape], _: Sequence[Any]) -> Products:
    query, key, value = shapes[:3]
    return Products(batched=2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1]))


def _convolution(shapes: Sequence[Shape], values: Sequence[Any]) -> Products:
    """Return the operations of ``aten::convolution``; the width is the size of a patch."""
    image, weight = shapes[0], shapes[1]
    stride, padding, dilation, transposed = values[3:7]
    if transposed:  # every input position meets the whole kernel
        return linear(prod(image) // image[1], image[1], prod(weight[1:]))
    positions = image[0]
    for axis, size in enumerate(image[2:]):
        step, pad, gap = (each[axis if len(each) > 1 else 0] for each in (stride, padding, dilation))
        positions *= (size + 2 * pad - gap * (weight[2 + axis] - 1) - 1) // step + 1
    return linear(positions, prod(weight[1:]), weight[0])


_OPERATORS: Final[dict[str, Callable[[Sequence[Shape], Sequence[Any]], Products]]] = {
    "linear": _linear,
    "mkldnn_linear": _linear,
    "matmul": _matmul,
    "mm": _matrices(0, 1),
    "addmm": _matrices(1, 2),
    "mv": _matrices(0, 1),
    "addmv": _matrices(1, 2),
    "dot": _matrices(0, 1),
    "vdot": _matrices(0, 1),
    "_int_mm": _matrices(0, 1),
    "_scaled_mm": _matrices(0, 1),
    "_grouped_mm": _matrices(0, 1),
    "_scaled_grouped_mm": _matrices(0, 1),
    "bmm": _batched(0, 1),
    "baddbmm": _batched(1, 2),
    "addbmm": _batched(1, 2),
    "convolution": _convolution,
    "scaled_dot_product_attention": _attention,
}
_FUSED_ATTENTION: Final = "_scaled_dot_product_"


def products_of(operator: str, shapes: Sequence[Shape], values: Sequence[Any]) -> Products | None:
    """Return the operations of a call; None for an operator without a product.

    Args:
        operator: its name, such as ``aten::mm``.
        shapes: shapes of the arguments; ``[]`` for an argument that is no tensor.
        values: the arguments that are numbers or lists of numbers; None for tensors.
    """
    name = operator.removeprefix("aten::").split(".")[0]
    if name.startswith(_FUSED_ATTENTION) and "backward" not in name:
        return _attention(shapes, values)
    count = _OPERATORS.get(name)
    return None if count is None else count(shapes, values)


_counts: list[ProductCount] = []
"""Counted regions that are open, of all threads."""
_lock = threading.Lock()
_capturing: ContextVar[bool] = ContextVar("capturing", default=False)


def declare(call: str, products: Products) -> None:
    """Add the work of a kernel outside of torch, at its launch, to every region that is counted now."""
    if not _counts or _capturing.get():
        return
    with _lock:
        for count in _counts:
            count.add(call, products)


@contextmanager
def not_executed() -> Iterator[None]:
    """Declare nothing in the body: its launches are recorded into a graph, not executed."""
    token = _capturing.set(True)
    try:
        yield
    finally:
        _capturing.reset(token)


@contextmanager
def _open(count: ProductCount) -> Iterator[None]:
    with _lock:
        _counts.append(count)
    try:
        yield
    finally:
        with _lock:
            _counts[:] = [other for other in _counts if other is not count]


class _Recorded(TorchDispatchMode):
    def __init__(self, count: ProductCount):
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self._count = count

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shapes = [list(arg.shape) if isinstance(arg, torch.Tensor) else [] for arg in args]
        values = [None if isinstance(arg, torch.Tensor) else arg for arg in args]
        if products := products_of(func._schema.name, shapes, values):
            self._count.add(func._schema.name, products)
        return func(*args, **(kwargs or {}))


@contextmanager
def counting_this_thread() -> Iterator[ProductCount]:
    """Count the body's operators in this thread, and all declared work. Works on meta tensors."""
    count = ProductCount()
    with _open(count), _Recorded(count):
        yield count


@contextmanager
def counting_all_threads() -> Iterator[ProductCount]:
    """Count the operators of all threads while the body runs, and all declared work; complete when the body has ended.

    torch's profiler must not be running.
    """
    from torch.profiler import ProfilerActivity, profile

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its own progress messages would mix with our lines
    everywhere = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    count = ProductCount()
    with (
        _open(count),
        profile(activities=[ProfilerActivity.CPU], record_shapes=True, experimental_config=everywhere) as profiler,
    ):
        # The first operator of a profile names the thread of the body.
        torch.empty(0).neg_()
        yield count
    assert profiler.profiler is not None
    results: Any = profiler.profiler.kineto_results
    _add_events(count, results.events())


def _add_events(count: ProductCount, events: Sequence[Any]) -> None:
    """Add the outermost operators with a product; the operators that they call are parts of them."""
    ended: dict[int, int] = {}
    own_thread: int | None = None
    for event in sorted(events, key=lambda each: (each.start_ns(), -each.duration_ns())):
        thread, name = event.start_thread_id(), event.name()
        if own_thread is None and name == "aten::neg_":
            own_thread = thread
        if event.start_ns() < ended.get(thread, 0):
            continue
        products = products_of(name, event.shapes(), event.concrete_inputs())
        if products is None:
            continue
        ended[thread] = event.end_ns()
        sizes = " x ".join(str(list(shape)) for shape in event.shapes()[:3] if len(shape) > 1)
        other = "" if thread == own_thread else " in another thread"
        count.add(f"{name.removeprefix('aten::')} {sizes}{other}", products)
