"""Attention kernels that are bitwise reproducible.

On Hopper, torch 2.11 prefers cuDNN's attention. It is not reproducible for one query over a long cache: repeats of
the same 46 decode steps on an H200 in bfloat16 had other bits in 5 of 5 cases. This flips near ties and then whole
answers. Flash, memory-efficient and plain attention were reproducible in the same runs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Final

from torch.nn.attention import SDPBackend, sdpa_kernel

REPRODUCIBLE: Final = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)


def reproducible_attention() -> AbstractContextManager[None]:
    """Restrict torch to reproducible attention kernels while the body runs."""
    return sdpa_kernel(list(REPRODUCIBLE))
