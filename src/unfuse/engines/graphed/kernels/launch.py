"""Kernel launches: compiling without running, and programmatic dependent launch."""

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
"""Numbers per unit of a KV cache's offset: 16 bytes of bfloat16, the widest load."""
LINE = tl.constexpr(128)
"""Bytes that one ``prefetch_l2`` loads."""
_HOPPER = 9
_compiling: ContextVar[bool] = ContextVar("compiling", default=False)


@triton.jit
def prefetch_l2(at):
    """Prefetch a line into the L2 cache. Not available in the interpreter."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [at], dtype=tl.int32, is_pure=False, pack=1
    )


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Launch a kernel; within ``compiling``, only compile it."""
    if _compiling.get():
        kernel.warmup(*arguments, grid=grid, **constants)
    else:
        kernel[grid](*arguments, **constants)


@contextmanager
def compiling(threads: int) -> Iterator[None]:
    """Compile the kernels that the body launches, in parallel, without running them.

    A kernel that does not compile, or does not fit the device, raises at its next launch.
    """
    token = _compiling.set(True)
    try:
        with ThreadPoolExecutor(threads) as pool, _compile_mode(pool):
            yield
    finally:
        _compiling.reset(token)


def _compile_mode(pool: Executor) -> AbstractContextManager[Any]:
    try:
        from triton.runtime._async_compile import AsyncCompileMode
    except ImportError:  # Triton before 3.5 compiles one kernel at a time
        return nullcontext()
    return AsyncCompileMode(pool, ignore_errors=True)


@functools.cache
def _can_overlap(index: int) -> bool:
    return torch.cuda.get_device_capability(index)[0] >= _HOPPER


def overlap(tensor: torch.Tensor, *, pdl: bool = True) -> dict[str, Any]:
    """Return launch arguments for programmatic dependent launch.

    Args:
        tensor: on the device of the launch.
        pdl: let this kernel start before the previous kernel has finished. The next kernel may always start early.
    """
    can = tensor.is_cuda and _can_overlap(tensor.device.index)
    # Other backends do not have this argument of Triton's.
    return {"OVERLAP": can, "DEPENDENT": can and pdl, **({"launch_pdl": True} if can and pdl else {})}


def mma_padded(size: int) -> int:
    """Return the size padded for tensor cores: a power of two, at least 16."""
    return max(16, triton.next_power_of_2(size))
