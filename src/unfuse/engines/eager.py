"""Engine ``eager``: the model's own forward and a growing Hugging Face cache. The reference for every other engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from unfuse.engines.attention import reproducible_attention
from unfuse.engines.sampling import TokenChooser
from unfuse.stages import Prefilled, Prompt, Sampling


@dataclass(frozen=True, slots=True)
class _State:
    cache: DynamicCache
    choose: TokenChooser


@dataclass(frozen=True, slots=True)
class _Kept:
    """Keys and values of the last prompt, for the next question about its scene."""

    token_keys: tuple[int, ...]
    features_digest: str | None
    layers: list[tuple[torch.Tensor, torch.Tensor]]


class EagerEngine:
    """Batch-1 prefill and decode through ``model.forward``."""

    name = "eager"

    def __init__(self, model: PreTrainedModel):
        self._model = model
        ends = model.generation_config.eos_token_id
        ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        self._end_ids = torch.tensor(ends, dtype=torch.long, device=model.device)
        self._ends = frozenset(ends)
        self._kept: _Kept | None = None

    @torch.no_grad()
    def prefill(self, prompt: Prompt, sampling: Sampling, *, reuse: bool = False) -> Prefilled:
        """See ``Engine.prefill``."""
        cache = DynamicCache()
        reused = self._take_prefix(prompt, cache) if reuse else 0
        with reproducible_attention():
            output = self._model(
                inputs_embeds=prompt.inputs_embeds[:, reused:],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
                **prompt.model_inputs,
            )
        if reuse:
            self._kept = _Kept(prompt.token_keys, prompt.features_digest, _layers(cache))
        logits = output.logits[0, -1].float()
        choose = TokenChooser(sampling, self._end_ids, logits.device)
        token = choose(logits)
        return Prefilled(
            token_id=int(token),
            logits=logits,
            prompt_tokens=prompt.inputs_embeds.shape[1],
            reused_prefix_tokens=reused,
            sampling=sampling,
            state=_State(cache, choose.marked()),
        )

    def decode(self, prefilled: Prefilled, max_new_tokens: int) -> Iterator[int]:
        """See ``Engine.decode``."""
        state: _State = prefilled.state
        state.choose.rewind()
        token = prefilled.token_id
        try:
            for written in range(1, max_new_tokens + 1):
                yield token
                if token in self._ends or written == max_new_tokens:
                    return
                token = int(state.choose(self._step(token, state.cache)))
        finally:
            # Later positions belong to this answer; the prompt's stay, so that it can be decoded again.
            _crop(state.cache, prefilled.prompt_tokens)

    @torch.no_grad()
    def score(self, prefilled: Prefilled, token_ids: Sequence[int]) -> torch.Tensor:
        """See ``Engine.score``."""
        cache = prefilled.state.cache
        try:
            later = [self._step(token, cache).float() for token in token_ids[:-1]]
        finally:
            _crop(cache, prefilled.prompt_tokens)
        return torch.stack([prefilled.logits, *later])

    def is_end(self, token_id: int) -> bool:
        """See ``Engine.is_end``."""
        return token_id in self._ends

    def close(self) -> None:
        """Forgets the kept prefix."""
        self._kept = None

    @torch.no_grad()
    def _step(self, token: int, cache: DynamicCache) -> torch.Tensor:
        """Logits ``[V]`` after one more token."""
        ids = torch.tensor([[token]], device=self._model.device)
        with reproducible_attention():
            output = self._model(input_ids=ids, past_key_values=cache, use_cache=True)
        logits: torch.Tensor = output.logits[0, -1]
        return logits

    def _take_prefix(self, prompt: Prompt, cache: DynamicCache) -> int:
        """Puts the usable part of the kept prefix into ``cache``; returns its length."""
        kept = self._kept
        if kept is None or prompt.model_inputs:
            return 0
        same_features = kept.features_digest == prompt.features_digest
        length = common_prefix(kept.token_keys, prompt.token_keys, same_features=same_features)
        # One position at least must be computed: its logits give the first token.
        length = min(length, prompt.inputs_embeds.shape[1] - 1)
        if length:
            for index, (keys, values) in enumerate(kept.layers):
                cache.update(keys[:, :, :length], values[:, :, :length], index)
        return length


def common_prefix(a: Sequence[int], b: Sequence[int], *, same_features: bool) -> int:
    """Length of the longest common prefix of two prompts' ``token_keys``.

    Feature positions are negative; with other features they are not common whatever their index.
    """
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y or (x < 0 and not same_features):
            break
        length += 1
    return length


def _crop(cache: DynamicCache, length: int) -> None:
    # By the number to remove: transformers 5.18 drops the form that takes the length to keep.
    if excess := cache.get_seq_length() - length:
        cache.crop(-excess)


def _layers(cache: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    # The cache appends by concatenation and crops by slicing, so these tensors are never written to again.
    return [(layer.keys, layer.values) for layer in cache.layers]
