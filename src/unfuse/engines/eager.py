"""Engine ``eager``: the model's own forward and a growing Hugging Face cache. The reference for every other engine."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers import DynamicCache

from unfuse.engines.attention import reproducible_attention
from unfuse.engines.batching import ContinuousBatch
from unfuse.engines.language_model import LanguageModel
from unfuse.engines.positions import following
from unfuse.engines.sampling import TokenChooser
from unfuse.engines.sequential import SequentialBatch
from unfuse.stages import Prefilled, Prompt, Sampling

_BLOCK: Final = 64
"""Positions that are compared together."""


@dataclass(frozen=True, slots=True)
class _State:
    cache: DynamicCache
    choose: TokenChooser
    position: torch.Tensor | None
    """Of the first token after the prompt."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """Keys and values of the last prompt, for the next question about its scene."""

    token_keys: tuple[int, ...]
    features_digest: str | None
    layers: list[tuple[torch.Tensor, torch.Tensor]]


class EagerEngine:
    """Prefill and decode through the decoder's own forward."""

    name = "eager"
    notes: tuple[str, ...] = ()

    def __init__(self, language: LanguageModel):
        self._language = language
        self._end_ids = torch.tensor(language.end_ids, dtype=torch.long, device=language.device)
        self._kept: _Kept | None = None

    def encoding(self) -> AbstractContextManager[None]:
        """Nothing of its own."""
        return nullcontext()

    @torch.no_grad()
    def prefill(self, prompt: Prompt, sampling: Sampling, *, reuse: bool = False) -> Prefilled:
        """See ``Engine.prefill``."""
        cache = DynamicCache()
        reused = self._take_prefix(prompt, cache) if reuse else 0
        with reproducible_attention():
            logits = self._language.prompt_logits(prompt, cache, reused)[0].float()
        if reuse and not prompt.decoder_inputs:
            self._kept = _Kept(prompt.token_keys, prompt.features_digest, _layers(cache))
        choose = TokenChooser(sampling, self._end_ids, logits.device)
        token = choose(logits)
        return Prefilled(
            token_id=int(token),
            logits=logits,
            prompt_tokens=prompt.length,
            reused_prefix_tokens=reused,
            sampling=sampling,
            state=_State(cache, choose.marked(), following(prompt.position_ids)),
        )

    def decode(self, prefilled: Prefilled, max_new_tokens: int) -> Iterator[int]:
        """See ``Engine.decode``."""
        state: _State = prefilled.state
        state.choose.rewind()
        token = prefilled.token_id
        try:
            for written in range(1, max_new_tokens + 1):
                yield token
                if self.is_end(token) or written == max_new_tokens:
                    return
                token = int(state.choose(self._step(token, state, written - 1)))
        finally:
            # Later positions belong to this answer; the prompt's stay, so that it can be decoded again.
            _crop(state.cache, prefilled.prompt_tokens)

    @torch.no_grad()
    def answer_batch(self, prompt: Prompt, sampling: Sampling, max_new_tokens: int) -> list[tuple[int, ...]]:
        """See ``Engine.answer_batch``."""
        rows = len(prompt.inputs_embeds)
        cache, position, mask = DynamicCache(), following(prompt.position_ids), prompt.attention_mask
        choosers = [TokenChooser(sampling, self._end_ids, self._language.device) for _ in range(rows)]
        answers: list[list[int]] = [[] for _ in range(rows)]
        with reproducible_attention():
            logits = self._language.prompt_logits(prompt, cache)
        for _ in range(max_new_tokens):
            chosen = torch.stack([choose(row.float()) for choose, row in zip(choosers, logits, strict=True)])
            for answer, token in zip(answers, chosen.tolist(), strict=True):
                # A row that has ended goes on computing, unseen, until the last one ends.
                if not answer or not self.is_end(answer[-1]):
                    answer.append(token)
            if len(answers[0]) == max_new_tokens or all(self.is_end(answer[-1]) for answer in answers):
                break
            mask = None if mask is None else torch.cat([mask, mask.new_ones(rows, 1)], dim=1)
            embeds = self._language.embed(chosen.unsqueeze(1))
            with reproducible_attention():
                logits = self._language.logits(embeds, cache, position_ids=position, attention_mask=mask)
            position = None if position is None else position + 1
        return [tuple(answer) for answer in answers]

    def continuous(self, capacity: int | None = None, *, interleave: bool = False) -> ContinuousBatch:
        """See ``Engine.continuous``."""
        return SequentialBatch(self, capacity, interleave=interleave)

    @torch.no_grad()
    def score(self, prefilled: Prefilled, token_ids: Sequence[int]) -> torch.Tensor:
        """See ``Engine.score``."""
        state: _State = prefilled.state
        try:
            later = [self._step(token, state, i).float() for i, token in enumerate(token_ids[:-1])]
        finally:
            _crop(state.cache, prefilled.prompt_tokens)
        return torch.stack([prefilled.logits, *later])

    def is_end(self, token_id: int) -> bool:
        """See ``Engine.is_end``."""
        return token_id in self._language.end_ids

    def close(self) -> None:
        """Forgets the kept prefix."""
        self._kept = None

    @torch.no_grad()
    def _step(self, token: int, state: _State, later: int) -> torch.Tensor:
        """Logits ``[V]`` after one more token, the one ``later`` places after the first."""
        language = self._language
        ids = torch.tensor([[token]], device=language.device)
        position = None if state.position is None else state.position + later
        with reproducible_attention():
            return language.logits(language.embed(ids), state.cache, position_ids=position)[0]

    def _take_prefix(self, prompt: Prompt, cache: DynamicCache) -> int:
        """Puts the usable part of the kept prefix into ``cache``; returns its length."""
        kept = self._kept
        # What is not causal lets a later question change the keys and values of the scene before it.
        if kept is None or prompt.decoder_inputs or not prompt.token_keys:
            return 0
        same_features = kept.features_digest == prompt.features_digest
        length = common_prefix(kept.token_keys, prompt.token_keys, same_features=same_features)
        # One position at least must be computed: its logits give the first token.
        length = min(length, prompt.length - 1)
        if prompt.scene_inputs and any(key < 0 for key in prompt.token_keys[length:]):
            return 0  # what belongs to the features is given whole or not at all
        if length:
            for index, (keys, values) in enumerate(kept.layers):
                cache.update(keys[:, :, :length], values[:, :, :length], index)
        return length


def common_prefix(a: Sequence[int], b: Sequence[int], *, same_features: bool) -> int:
    """Length of the longest common prefix of two prompts' ``token_keys``.

    Feature positions are negative; with other features they are not common whatever their index.
    """
    # Several hundred positions stand between a question and its first token: most are passed by in blocks.
    shorter = min(len(a), len(b))
    at = next((i for i in range(0, shorter, _BLOCK) if a[i : i + _BLOCK] != b[i : i + _BLOCK]), shorter)
    differs = itertools.compress(itertools.count(at), map(operator.ne, a[at:shorter], b[at:shorter]))
    length = next(differs, shorter)
    if not same_features:
        length = next(itertools.compress(itertools.count(), map(operator.lt, a[:length], itertools.repeat(0))), length)
    return length


def _crop(cache: DynamicCache, length: int) -> None:
    # By the number to remove: transformers 5.18 drops the form that takes the length to keep.
    if excess := cache.get_seq_length() - length:
        cache.crop(-excess)


def _layers(cache: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    # The cache appends by concatenation and crops by slicing, so these tensors are never written to again.
    return [(layer.keys, layer.values) for layer in cache.layers]
