"""Measure the two ceilings of the roofline model (Williams et al., CACM 2009): bandwidth and arithmetic throughput."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Final

from unfuse.records.work_records import Ceilings

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

_REPEATS: Final = 4


@functools.cache
def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings | None:
    """Read and copy a large buffer, and multiply large matrices: the fastest of a few repeats, once a process.

    Args:
        device: to measure.
        dtype: of the matrices.

    Returns:
        None if the device has too little memory.
    """
    import torch

    cuda = device.type == "cuda"
    size, side = (2**30, 8192) if cuda else (2**28, 1024)
    try:
        buffer = torch.empty(size // 4, dtype=torch.float32, device=device).normal_()
        other = torch.empty_like(buffer)
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        read = _times(lambda: buffer.sum(), device)
        copied = _times(lambda: other.copy_(buffer), device)
        multiplied = _times(lambda: a @ b, device)
    except torch.OutOfMemoryError:
        return None
    moved = min((min(read) / size, read), (min(copied) / (2 * size), copied))
    return Ceilings(
        bytes_per_s=1 / moved[0],
        flops_per_s=2 * side**3 / min(multiplied),
        error_pct=max(100 * (max(times) / min(times) - 1) for times in (moved[1], multiplied)),
    )


def _times(work: Callable[[], object], device: torch.device) -> list[float]:
    """Return the times of the repeats, in s."""
    import torch

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    work()
    times = []
    for _ in range(_REPEATS):
        wait()
        start = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - start)
    return times
