"""Calls a model's own ``generate``, the reference for the stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from unfuse.adapters.base import FusedOutput
from unfuse.engines.attention import reproducible_attention
from unfuse.errors import NonFiniteError, PromptError
from unfuse.finite import is_finite
from unfuse.stages import Sampling


class _ForcedTokens(LogitsProcessor):
    """Leaves one token to choose in each step. ``output_logits`` has the logits from before."""

    def __init__(self, token_ids: Sequence[int]):
        self._remaining = iter(token_ids)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, float("-inf"))
        forced[:, next(self._remaining)] = 0
        return forced


@dataclass(frozen=True, kw_only=True, slots=True)
class FusedSettings:
    """Settings of one call of ``generate``."""

    max_new_tokens: int
    sampling: Sampling
    """How tokens are chosen. Sampling uses torch's global generator, seeded for the call: the distribution is that of
    the stages, the random numbers are not."""
    logits: bool = False
    """Return the logits of each token."""
    forced: Sequence[int] | None = None
    """Tokens to write, one after the other, instead of the chosen ones."""


def generate_fused(
    model: Any, arguments: Mapping[str, Any], prompt_length: int, fused: FusedSettings
) -> list[FusedOutput]:
    """Call ``generate`` and return each row's new tokens.

    Args:
        model: has Hugging Face's ``generate``.
        arguments: inputs of ``generate``.
        prompt_length: prompt ids at the start of each returned row; 0 if it contains new ids only.
        fused: settings of the call.

    Raises:
        NonFiniteError: the logits of a token are not finite: of the first one in ``prefill``, else in ``decode``.
        PromptError: ``generate`` refuses the inputs.
    """
    sampling, logits = fused.sampling, fused.logits
    settings = generation_settings(model, fused.max_new_tokens, sampling)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), reproducible_attention(), torch.no_grad():
        if sampling.temperature:
            torch.manual_seed(sampling.seed)
        settings.return_dict_in_generate, settings.output_logits = True, logits
        ends = settings.eos_token_id
        ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        watch = _FiniteLogits(ends if sampling.ignore_eos else [])
        forced = [] if fused.forced is None else [_ForcedTokens(fused.forced)]
        processors = LogitsProcessorList([watch, *forced])
        try:
            output = model.generate(**arguments, generation_config=settings, logits_processor=processors)
        except ValueError as error:
            found = " ".join(str(error).split())
            raise PromptError(
                f"{type(model).__name__}.generate", found=found, expected="inputs that it takes"
            ) from None
    answers = []
    finite = watch.finite
    for index, row in enumerate(output.sequences[:, prompt_length:].tolist()):
        end = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
        if (bad := next((i for i, sound in enumerate(finite[index][:end]) if not sound), None)) is not None:
            raise NonFiniteError(
                "decode" if bad else "prefill", "logits", found=f"NaN or infinity at new token {bad + 1} of {end}"
            )
        chosen_from = torch.stack([step[index].float() for step in output.logits[:end]]) if logits else None
        answers.append(FusedOutput(tuple(row[:end]), chosen_from))
    return answers


class _FiniteLogits(LogitsProcessor):
    """Records whether the logits of each token are finite, and lets ``generate`` choose from finite ones only."""

    def __init__(self, end_ids: list[int]):
        self._end_ids = end_ids
        self._steps: list[torch.Tensor] = []

    @property
    def finite(self) -> list[list[bool]]:
        """One row for each prompt, with a flag for each new token."""
        return torch.stack(self._steps, dim=1).tolist() if self._steps else []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        checked = scores
        if self._end_ids:
            # A minimum length masks the end tokens by minus infinity, before this call.
            ends = scores[:, self._end_ids]
            checked = scores.clone()
            checked[:, self._end_ids] = ends.masked_fill(ends == float("-inf"), 0.0)
        finite = is_finite(checked)
        self._steps.append(finite)
        # Drawing from NaN would end the CUDA context of the process.
        return torch.where(finite[:, None], scores, 0.0)


def generation_settings(model: Any, max_new_tokens: int, sampling: Sampling) -> GenerationConfig:
    """Return settings that choose tokens as the stages do, without the checkpoint's penalties and sampling defaults."""
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
