"""Position ids of the tokens that follow a prompt."""

from __future__ import annotations

import torch

from unfuse.stages import Prompt


def following(position_ids: torch.Tensor | None) -> torch.Tensor | None:
    """Return the position after a prompt: one past its last column, as in ``generate``.

    Under M-RoPE (Qwen2-VL, arXiv 2409.12191, section 2.1) text continues from the largest position of the three axes. A
    long video may have larger positions on the time axis than the text after it; ``generate`` continues from the
    position of the text, and so do the stages.

    Args:
        position_ids: ``[B, L]`` or ``[3 or 4, B, L]``, padded on the left; None counts from 0 and needs no ids.

    Returns:
        ``[B, 1]`` or ``[3 or 4, B, 1]``, or None.
    """
    return None if position_ids is None else position_ids[..., -1:] + 1


def sampling_positions(position: torch.Tensor | None, prompt: Prompt) -> torch.Tensor:
    """Return the position of the first token after each prompt of a batch, int64 ``[B]``; sampling depends on it.

    Args:
        position: from ``following``.
        prompt: the batch.
    """
    if position is None and prompt.attention_mask is not None:
        return prompt.attention_mask.sum(-1)
    if position is None:
        rows, length = prompt.inputs_embeds.shape[:2]
        return torch.full((rows,), length, device=prompt.inputs_embeds.device)
    # Under M-RoPE a fourth row in front counts the text alone; all axes are equal in text.
    return (position[-min(3, len(position))] if position.dim() == 3 else position)[:, 0].long()
