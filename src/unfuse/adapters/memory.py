"""Whether weights fit before they are made."""

from __future__ import annotations

import gc
import os

import torch

from unfuse.errors import DeviceError


def require_memory(name: str, parameters: int, device: torch.device, dtype: torch.dtype) -> None:
    """Refuses a model that would only be killed while it is being made.

    Raises:
        DeviceError: with what is free and what is needed.
    """
    if device.type == "cuda":
        # An earlier model may be waiting to be collected, and what it had, to be given back.
        gc.collect()
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = parameters * dtype.itemsize
    if free < needed:
        raise DeviceError(
            name,
            found=f"{free / 2**30:.0f} GiB free on {device}",
            expected=f"{needed / 2**30:.0f} GiB for its weights in {str(dtype).removeprefix('torch.')}",
            fix="choose a larger --device, or --dtype bfloat16",
        )
