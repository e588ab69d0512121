"""The text side of a model, for Stage 4: decoder, LM head and token embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from unfuse.stages import Prompt


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """The text side of one loaded model."""

    decoder: nn.Module
    """Takes ``inputs_embeds``, ``past_key_values`` and masks; returns ``last_hidden_state [B, L, H]``."""
    head: nn.Module
    """Maps ``[B, L, H]`` to logits ``[B, L, V]``."""
    embed: nn.Module
    """Maps token ids ``[B, L]`` to ``[B, L, H]``."""
    end_ids: tuple[int, ...]
    """Tokens that end an answer."""

    @property
    def device(self) -> torch.device:
        """Device of the decoder."""
        return next(self.decoder.parameters()).device

    def logits(self, inputs_embeds: torch.Tensor, cache: Any, **decoder_inputs: Any) -> torch.Tensor:
        """Return next-token logits ``[B, V]`` in the model's dtype after the given positions; extend ``cache``."""
        output = self.decoder(
            inputs_embeds=inputs_embeds, past_key_values=cache, use_cache=True, return_dict=True, **decoder_inputs
        )
        # The head is the widest matrix of the model, so it runs on the last position only.
        logits: torch.Tensor = self.head(output.last_hidden_state[:, -1:, :])[:, -1]
        return logits

    def prompt_logits(self, prompt: Prompt, cache: Any, reused: int = 0) -> torch.Tensor:
        """Return next-token logits ``[B, V]`` after a prompt, and extend ``cache``.

        The first ``reused`` positions are cached already. If there are any, they include all features.
        """
        inputs = {**prompt.decoder_inputs, **({} if reused else prompt.scene_inputs)}
        if prompt.attention_mask is not None:
            inputs.setdefault("attention_mask", prompt.attention_mask)
        if prompt.position_ids is not None:
            inputs["position_ids"] = prompt.position_ids[..., reused:]
        return self.logits(prompt.inputs_embeds[:, reused:], cache, **inputs)


def end_ids(model: Any) -> tuple[int, ...]:
    """Return the tokens that stop a Hugging Face model's ``generate``."""
    ends = model.generation_config.eos_token_id
    return () if ends is None else (ends,) if isinstance(ends, int) else tuple(ends)
