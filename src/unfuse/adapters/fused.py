"""The fused call that the stages are held against: a model's own ``generate``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationConfig

from unfuse.adapters.base import Fused
from unfuse.engines.attention import reproducible_attention
from unfuse.errors import PromptError
from unfuse.stages import Sampling


def generate_fused(
    model: Any,
    arguments: Mapping[str, Any],
    prompt_length: int,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    logits: bool,
) -> list[Fused]:
    """Calls ``generate`` and gives each row's new tokens.

    Args:
        model: has Hugging Face's ``generate``.
        arguments: its inputs.
        prompt_length: ids at the start of each returned row that are the prompt; 0 where it gives new ones only.
        max_new_tokens: at most.
        sampling: as the stages choose tokens. A sampled run takes torch's global generator, which ``seed`` sets: the
            distribution is the stages' own, the draws are not.
        logits: keep what each token was chosen from.
    """
    settings = generation_settings(model, max_new_tokens, sampling)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), reproducible_attention(), torch.no_grad():
        if sampling.temperature:
            torch.manual_seed(sampling.seed)
        settings.return_dict_in_generate, settings.output_logits = True, logits
        try:
            output = model.generate(**arguments, generation_config=settings)
        except ValueError as error:
            found = " ".join(str(error).split())
            raise PromptError(
                f"{type(model).__name__}.generate", found=found, expected="inputs that it takes"
            ) from None
    ends = settings.eos_token_id
    ends = set() if ends is None else {ends} if isinstance(ends, int) else set(ends)
    answers = []
    for index, row in enumerate(output.sequences[:, prompt_length:].tolist()):
        end = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
        kept = torch.stack([step[index].float() for step in output.logits[:end]]) if logits else None
        answers.append(Fused(tuple(row[:end]), kept))
    return answers


def generation_settings(model: Any, max_new_tokens: int, sampling: Sampling) -> GenerationConfig:
    """Settings that choose tokens as the stages do.

    A checkpoint's own penalties and sampling defaults stay out: they would change the work, not only its outcome.
    """
    own = model.generation_config
    chosen: dict[str, Any] = {"do_sample": False}
    if sampling.temperature:
        chosen = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    return GenerationConfig(
        bos_token_id=own.bos_token_id,
        eos_token_id=own.eos_token_id,
        pad_token_id=own.pad_token_id if own.pad_token_id is not None else 0,
        max_new_tokens=max_new_tokens,
        min_new_tokens=max_new_tokens if sampling.ignore_eos else None,
        **chosen,
    )
