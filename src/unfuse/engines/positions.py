"""Position ids of the tokens that follow a prompt."""

from __future__ import annotations

import torch


def following(position_ids: torch.Tensor | None) -> torch.Tensor | None:
    """The first position after a prompt: one past its last column, as ``generate`` goes on.

    Under M-RoPE (Qwen2-VL, arXiv 2409.12191, section 2.1) text goes on from the largest position of the three axes. The
    time axis of a long video may lie beyond the text that follows it; ``generate`` takes the text's own position all
    the same, and so do the stages.

    Args:
        position_ids: ``[B, L]`` or ``[3 or 4, B, L]``, padded on the left; None counts from 0 and needs no ids.

    Returns:
        ``[B, 1]`` or ``[3 or 4, B, 1]``, or None.
    """
    return None if position_ids is None else position_ids[..., -1:] + 1
