"""Position ids of the tokens that follow a prompt."""

from __future__ import annotations

import torch


def following(position_ids: torch.Tensor | None) -> torch.Tensor | None:
    """The first position after a prompt.

    One past the largest position of each row: under M-RoPE (Qwen2-VL, arXiv 2409.12191, section 2.1) text goes on from
    the largest of the three axes; a fourth axis, first where it is there, counts plain text positions by itself.

    Args:
        position_ids: ``[B, L]`` or ``[3 or 4, B, L]``; None counts from 0 and needs no ids.

    Returns:
        ``[B, 1]`` or ``[3 or 4, B, 1]``, or None.
    """
    if position_ids is None:
        return None
    if position_ids.dim() == 2:
        return position_ids.amax(-1, keepdim=True) + 1
    text, axes = position_ids[:-3], position_ids[-3:]
    after = axes.amax((0, -1)).view(1, -1, 1).expand(3, -1, 1)
    return torch.cat([text.amax(-1, keepdim=True), after]) + 1
