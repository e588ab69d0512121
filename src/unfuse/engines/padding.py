"""Splits a padded batch into its prompts."""

from __future__ import annotations

from unfuse.stages import Prompt


def unpadded(prompt: Prompt) -> list[Prompt]:
    """Return each row of a batch as a prompt without padding."""
    rows = []
    for index in range(len(prompt.inputs_embeds)):
        mask, ids = prompt.attention_mask, prompt.position_ids
        first = 0 if mask is None else int((mask[index] == 0).sum())
        rows.append(
            Prompt(
                inputs_embeds=prompt.inputs_embeds[index : index + 1, first:],
                position_ids=None if ids is None else ids[..., index : index + 1, first:],
                decoder_inputs=prompt.decoder_inputs,
                scene_inputs=prompt.scene_inputs,
            )
        )
    return rows
