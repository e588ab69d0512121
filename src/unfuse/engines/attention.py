"""Attention kernels that give the same bits for the same input.

On Hopper, torch 2.11 prefers cuDNN's attention. For one query over a long cache it is not reproducible: the same 46
decode steps repeated on an H200 in bfloat16 gave other bits in 5 of 5 repeats, which flips near ties and with them
whole answers.
Flash, memory-efficient and plain attention repeated exactly in the same runs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Final

from torch.nn.attention import SDPBackend, sdpa_kernel

REPRODUCIBLE: Final = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)


def reproducible_attention() -> AbstractContextManager[None]:
    """Keeps torch from choosing an attention kernel that is not reproducible while the body runs."""
    return sdpa_kernel(list(REPRODUCIBLE))
