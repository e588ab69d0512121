"""Engine ``eager``: the model's own forward with a Hugging Face cache. It is the reference for every other engine."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from unfuse.engines.attention import reproducible_attention
from unfuse.engines.base import CountedRows, DraftSupport
from unfuse.engines.batching import ContinuousBatch
from unfuse.engines.language_model import LanguageModel
from unfuse.engines.positions import following, sampling_positions
from unfuse.engines.prefix import common_prefix
from unfuse.engines.sampling import TokenChooser, require_valid
from unfuse.engines.sequential import SequentialBatch
from unfuse.finite import INVALID_TOKEN
from unfuse.speculation.drafter import Drafts
from unfuse.speculation.reference import verified
from unfuse.stages import Prefilled, Prompt, Sampling
from unfuse.unavailable import Unavailable


@dataclass(frozen=True, slots=True)
class _State:
    cache: DynamicCache
    position: torch.Tensor | None
    """Rotary position of the first token after the prompt; None counts from 0."""
    sampling_position: torch.Tensor
    """The same position, int64 ``[]``."""


@dataclass(frozen=True, slots=True)
class _LastPrompt:
    """Keys and values of the last prompt, for the next question about its scene."""

    token_keys: tuple[int, ...]
    features_digest: str | None
    layers: list[tuple[torch.Tensor, torch.Tensor]]


class EagerEngine:
    """Runs prefill and decode by the decoder's own forward."""

    name = "eager"
    notes: tuple[str, ...] = ()
    draft_support = DraftSupport(
        verified=True, note="engine eager verifies drafted tokens one after the other, so it is no faster with them"
    )

    def __init__(self, language: LanguageModel):
        self._language = language
        self._end_ids = torch.tensor(language.end_ids, dtype=torch.long, device=language.device)
        self._last: _LastPrompt | None = None

    def encoding(self) -> AbstractContextManager[None]:
        """Do nothing: stage 3 runs unchanged."""
        return nullcontext()

    @torch.no_grad()
    def prefill(self, prompt: Prompt, sampling: Sampling, *, reuse: bool = False) -> Prefilled:
        """See ``Engine.prefill``."""
        cache = DynamicCache()
        reused = self._take_prefix(prompt, cache) if reuse else 0
        with reproducible_attention():
            logits = self._language.prompt_logits(prompt, cache, reused)[0].float()
        if reuse and not prompt.decoder_inputs:
            self._last = _LastPrompt(prompt.token_keys, prompt.features_digest, _layers(cache))
        position = following(prompt.position_ids)
        sampling_position = sampling_positions(position, prompt)[0]
        token = TokenChooser(sampling, self._end_ids, logits.device)(logits, sampling_position)
        return Prefilled(
            token_id=require_valid(int(token), "prefill", logits),
            logits=logits,
            prompt_tokens=prompt.length,
            reused_prefix_tokens=reused,
            sampling=sampling,
            state=_State(cache, position, sampling_position),
        )

    def counted_rows(self, prompt: Prompt) -> CountedRows | Unavailable:
        """See ``Engine.counted_rows``. torch computes everything."""
        return CountedRows(prompt.length)

    def decode(self, prefilled: Prefilled, max_new_tokens: int, drafts: Drafts | None = None) -> Iterator[int]:
        """See ``Engine.decode``. A pass over a draft is evaluated token by token: the reference for other engines."""
        tokens = self._decode(prefilled, max_new_tokens)
        return tokens if drafts is None else verified(tokens, drafts, max_new_tokens, self.is_end)

    def _decode(self, prefilled: Prefilled, max_new_tokens: int) -> Generator[int]:
        state: _State = prefilled.state
        choose = TokenChooser(prefilled.sampling, self._end_ids, prefilled.logits.device)
        token = prefilled.token_id
        try:
            for count in range(1, max_new_tokens + 1):
                yield token
                if self.is_end(token) or count == max_new_tokens:
                    return
                logits = self._step(token, state, count - 1)
                token = require_valid(int(choose(logits, state.sampling_position + count)), "decode", logits)
        finally:
            # Remove the positions of the answer, so that the prompt can be decoded again.
            _crop(state.cache, prefilled.prompt_tokens)

    @torch.no_grad()
    def answer_batch(self, prompt: Prompt, sampling: Sampling, max_new_tokens: int) -> list[tuple[int, ...]]:
        """See ``Engine.answer_batch``."""
        rows = len(prompt.inputs_embeds)
        cache, position, mask = DynamicCache(), following(prompt.position_ids), prompt.attention_mask
        choose = TokenChooser(sampling, self._end_ids, self._language.device)
        sampling_position = sampling_positions(position, prompt)
        answers: list[list[int]] = [[] for _ in range(rows)]
        with reproducible_attention():
            logits = self._language.prompt_logits(prompt, cache)
        for written in range(max_new_tokens):
            # Row by row: a softmax over several rows may round another way.
            rows_chosen = zip(logits, sampling_position + written, strict=True)
            chosen = torch.stack([choose(row.float(), at) for row, at in rows_chosen])
            for answer, token in zip(answers, chosen.tolist(), strict=True):
                # A row that has ended is computed on until the last row ends.
                if not answer or not self._is_last(answer[-1]):
                    answer.append(token)
            if len(answers[0]) == max_new_tokens or all(self._is_last(answer[-1]) for answer in answers):
                break
            mask = None if mask is None else torch.cat([mask, mask.new_ones(rows, 1)], dim=1)
            embeds = self._language.embed(chosen.clamp(min=0).unsqueeze(1))
            with reproducible_attention():
                logits = self._language.logits(embeds, cache, position_ids=position, attention_mask=mask)
            position = None if position is None else position + 1
        return [tuple(answer) for answer in answers]

    def continuous(self, capacity: int | None = None, *, interleave: bool = False) -> ContinuousBatch:
        """See ``Engine.continuous``."""
        return SequentialBatch(self, capacity, interleave=interleave)

    @torch.no_grad()
    def score(self, prefilled: Prefilled, token_ids: Sequence[int], drafts: Drafts | None = None) -> torch.Tensor:
        """See ``Engine.score``. A pass computes one token, so drafts change nothing."""
        state: _State = prefilled.state
        try:
            later = [self._step(token, state, i).float() for i, token in enumerate(token_ids[:-1])]
        finally:
            _crop(state.cache, prefilled.prompt_tokens)
        return torch.stack([prefilled.logits, *later])

    def is_end(self, token_id: int) -> bool:
        """See ``Engine.is_end``."""
        return token_id in self._language.end_ids

    def _is_last(self, token_id: int) -> bool:
        return token_id == INVALID_TOKEN or self.is_end(token_id)

    def close(self) -> None:
        """Free the cached prompt."""
        self._last = None

    @torch.no_grad()
    def _step(self, token: int, state: _State, offset: int) -> torch.Tensor:
        """Return the logits ``[V]`` after a token at ``offset`` positions after the first new token."""
        language = self._language
        ids = torch.tensor([[token]], device=language.device)
        position = None if state.position is None else state.position + offset
        with reproducible_attention():
            return language.logits(language.embed(ids), state.cache, position_ids=position)[0]

    def _take_prefix(self, prompt: Prompt, cache: DynamicCache) -> int:
        """Copy the reusable prefix of the cached prompt into ``cache``; return its length."""
        last = self._last
        # Without a causal mask, keys and values of a scene depend on the question after it.
        if last is None or prompt.decoder_inputs or not prompt.token_keys:
            return 0
        same_features = last.features_digest == prompt.features_digest
        length = common_prefix(last.token_keys, prompt.token_keys, same_features=same_features)
        # At least one position must be computed: its logits give the first token.
        length = min(length, prompt.length - 1)
        if prompt.scene_inputs and any(key < 0 for key in prompt.token_keys[length:]):
            return 0  # scene inputs cannot be split
        if length:
            for index, (keys, values) in enumerate(last.layers):
                cache.update(keys[:, :, :length], values[:, :, :length], index)
        return length


def _crop(cache: DynamicCache, length: int) -> None:
    # A negative number is the count to remove: transformers 5.18 no longer accepts the length to keep.
    if excess := cache.get_seq_length() - length:
        cache.crop(-excess)


def _layers(cache: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    # The cache appends by concatenation and crops by slicing, so these tensors are never overwritten.
    return [(layer.keys, layer.values) for layer in cache.layers]
