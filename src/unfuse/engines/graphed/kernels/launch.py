"""What a launch depends on besides its arguments."""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton.language as tl

UNIT = tl.constexpr(8)
"""Numbers that one step of an offset into a cache stands for; 16 bytes of bfloat16, as the widest load takes."""
_HOPPER = 9


@functools.cache
def _can_overlap(index: int) -> bool:
    return torch.cuda.get_device_capability(index)[0] >= _HOPPER


def overlap(tensor: torch.Tensor, *, early: bool = True) -> dict[str, Any]:
    """Launch arguments: whether the next kernel may start before this one ends, and this one before the one ahead."""
    can = tensor.is_cuda and _can_overlap(tensor.device.index)
    # Triton's own argument, which other backends do not have.
    return {"OVERLAP": can, "DEPENDENT": can and early, **({"launch_pdl": True} if can and early else {})}
