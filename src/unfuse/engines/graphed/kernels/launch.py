"""How kernels are launched, and what a launch depends on besides its arguments."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
import triton
import triton.language as tl

UNIT = tl.constexpr(8)
"""Numbers that one step of an offset into a cache stands for; 16 bytes of bfloat16, as the widest load takes."""
LINE = tl.constexpr(128)
"""Bytes that one ``prefetch_l2`` brings into the device's cache."""
_HOPPER = 9
_compiling: ContextVar[bool] = ContextVar("compiling", default=False)


@triton.jit
def prefetch_l2(at):
    """What lies there begins to move into the cache that all programs share; not for the interpreter."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [at], dtype=tl.int32, is_pure=False, pack=1
    )


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Launches a kernel; while ``compiling`` lasts, compiles it only."""
    if _compiling.get():
        kernel.warmup(*arguments, grid=grid, **constants)
    else:
        kernel[grid](*arguments, **constants)


@contextmanager
def compiling(threads: int) -> Iterator[None]:
    """Kernels that are launched in the body are compiled side by side and not run; ready when it ends.

    One that does not fit the device, or does not compile, says so when it is launched.
    """
    token = _compiling.set(True)
    try:
        with ThreadPoolExecutor(threads) as pool, _side_by_side(pool):
            yield
    finally:
        _compiling.reset(token)


def _side_by_side(pool: Executor) -> AbstractContextManager[Any]:
    try:
        from triton.runtime._async_compile import AsyncCompileMode
    except ImportError:  # before Triton 3.5: one after the other
        return nullcontext()
    return AsyncCompileMode(pool, ignore_errors=True)


@functools.cache
def _can_overlap(index: int) -> bool:
    return torch.cuda.get_device_capability(index)[0] >= _HOPPER


def overlap(tensor: torch.Tensor, *, early: bool = True) -> dict[str, Any]:
    """Launch arguments: whether the next kernel may start before this one ends, and this one before the one ahead."""
    can = tensor.is_cuda and _can_overlap(tensor.device.index)
    # Triton's own argument, which other backends do not have.
    return {"OVERLAP": can, "DEPENDENT": can and early, **({"launch_pdl": True} if can and early else {})}


def wide_enough(size: int) -> int:
    """A width that matrix units take."""
    return max(16, triton.next_power_of_2(size))
