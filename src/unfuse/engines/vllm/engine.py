"""Engine ``vllm``: submits prompts to vLLM as embeddings, with the features in place, and returns the tokens.

``prefill`` submits a request of one token, and ``decode`` another one of the later tokens, since vLLM cannot hand over
the state between them. The second request finds the whole blocks of the first in vLLM's prefix cache, so ``decode``
computes at most one block of positions again. Prompts share no other blocks unless ``reuse`` is set: each has its own
salt.
"""

from __future__ import annotations

import gc
import hashlib
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from unfuse.engines.base import CountedRows, DraftSupport
from unfuse.engines.batching import ContinuousBatch, Request
from unfuse.engines.eager import EagerEngine
from unfuse.engines.graphed.autotune import Autotuner
from unfuse.engines.graphed.vision import CapturedVision
from unfuse.engines.language_model import LanguageModel
from unfuse.engines.padding import unpadded
from unfuse.engines.sampling import require_valid
from unfuse.engines.sequential import SequentialBatch
from unfuse.engines.unsupported import Unsupported
from unfuse.engines.vllm.batch import VllmBatch
from unfuse.engines.vllm.builder import build, shut_down
from unfuse.engines.vllm.client import MAX_TEMPERATURE, MIN_TEMPERATURE, VllmClient
from unfuse.engines.vllm.host_prompt import HostPrompt, PreparedPrompt
from unfuse.engines.vllm.logits_recorder import LogitsRecorder, RecorderRegistry
from unfuse.engines.vllm.prefix_hash import PrefixKey
from unfuse.errors import NonFiniteError
from unfuse.finite import INVALID_TOKEN, is_finite
from unfuse.speculation.drafter import Drafts
from unfuse.stages import Prefilled, Prompt, Sampling
from unfuse.unavailable import Unavailable

MAX_BATCH: Final = 128
"""Requests that run at the same time. More gain little: reading the weights is shared by all rows already."""
_TOLERANCE: Final = {torch.float32: 2e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
"""Largest relative L2 distance from the logits of the model's own forward."""
_COMPARED: Final = (40, 48)
"""Lengths of the prompts that a new engine is compared on: more than a block; the first is a prefix of the second."""

_live: weakref.WeakSet[VllmEngine] = weakref.WeakSet()
"""At most one: vLLM's process groups are global, and closing any engine destroys them."""


class VllmEngine:
    """Prefill and decode of a decoder that vLLM supports, on the loaded model's weights."""

    name = "vllm"
    draft_support = DraftSupport(verified=False, note="engine vllm accepts no drafts; vLLM has methods of its own")

    def __init__(
        self,
        language: LanguageModel,
        vision: Mapping[str, nn.Module] | None = None,
        *,
        capacity: int = MAX_BATCH,
        enforce_eager: bool = False,
        cache: Path | None = None,
    ):
        """Build vLLM in this process, and compare its logits with the model's own forward.

        Args:
            language: the language model.
            vision: modules of Stage 3 to run as graphs, as engine ``graphed`` does.
            capacity: requests that run at the same time, at most.
            enforce_eager: do not compile or capture: starts in seconds, answers more slowly.
            cache: folder of configs that later runs reuse; by default in the user's cache.

        Raises:
            Unsupported: vLLM does not support the model, its logits differ, or it runs another model in this process.
        """
        if _live:
            gc.collect()  # an engine that was dropped without close()
        if _live:
            raise Unsupported("vLLM runs another model in this process, which has not been closed")
        self._language = language
        self._end_ids = torch.tensor(language.end_ids, dtype=torch.long, device=language.device)
        on_gpu = language.device.type == "cuda"
        recorders = RecorderRegistry()
        self._engine: Any = build(
            language, recorders, capacity=capacity, enforce_eager=enforce_eager, cache=cache
        )  # fmt: skip
        _live.add(self)
        self._client = VllmClient(self._engine, recorders, language.end_ids)
        self._capacity = capacity
        self._stream = torch.cuda.Stream(language.device) if on_gpu else None
        self._batches: list[VllmBatch] = []
        self._num_salts = 0
        with torch.no_grad():
            tuner = Autotuner(language.device, cache)
            self._vision = CapturedVision(vision or {}, tuner, torch.cuda.graph_pool_handle() if on_gpu else None)
        self._eager = EagerEngine(language)
        """For prompts that vLLM does not support."""
        import vllm

        self._notes: dict[str, None] = {f"vLLM {vllm.__version__}": None}
        try:
            self._compare()
        except Unsupported:
            self.close()
            raise

    @property
    def notes(self) -> tuple[str, ...]:
        """See ``Engine.notes``."""
        return (*self._notes, *self._vision.notes)

    def encoding(self) -> AbstractContextManager[None]:
        """See ``Engine.encoding``."""
        return self._vision.active()

    @torch.no_grad()
    def prefill(self, prompt: Prompt, sampling: Sampling, *, reuse: bool = False) -> Prefilled:
        """See ``Engine.prefill``."""
        prepared = self._prepare(prompt, sampling, reuse=reuse)
        if prepared is None:
            return self._eager.prefill(prompt, sampling, reuse=reuse)
        recorder = LogitsRecorder(eos_masked=self._end_ids if sampling.ignore_eos else None)
        name = self._client.submit(prepared.host.embeds(), sampling, 1, prefix=prepared.prefix, recorder=recorder)
        (first,) = self._client.follow(name)
        token = first.token_id if bool(is_finite(recorder[0])) else INVALID_TOKEN
        return Prefilled(
            token_id=require_valid(token, "prefill", recorder[0]),
            logits=recorder[0],
            prompt_tokens=prepared.host.length,
            reused_prefix_tokens=first.cached_tokens if reuse else 0,
            sampling=sampling,
            state=prepared,
        )

    def counted_rows(self, prompt: Prompt) -> CountedRows | Unavailable:
        """See ``Engine.counted_rows``."""
        return Unavailable("vLLM runs Stage 4 by kernels whose work is not counted")

    def decode(self, prefilled: Prefilled, max_new_tokens: int, drafts: Drafts | None = None) -> Iterator[int]:
        """See ``Engine.decode``. Generation also stops at the model's context length; drafts are ignored."""
        prepared = prefilled.state
        if not isinstance(prepared, PreparedPrompt):
            yield from self._eager.decode(prefilled, max_new_tokens)
            return
        token = prefilled.token_id
        yield token
        remaining = min(max_new_tokens - 1, self._client.max_positions - prepared.host.length - 1)
        if self.is_end(token) or remaining < 1:
            return
        embeds = prepared.host.with_token(self._embedding(token))
        # With the seed of the first request, the second token would be drawn with the noise of the first token.
        sampling = replace(prefilled.sampling, seed=_decode_seed(prefilled.sampling.seed))
        name = self._client.submit(embeds, sampling, remaining, prefix=prepared.prefix.then(token))
        for each in self._client.follow(name):
            yield require_valid(each.token_id, "decode")

    @torch.no_grad()
    def answer_batch(self, prompt: Prompt, sampling: Sampling, max_new_tokens: int) -> list[tuple[int, ...]]:
        """See ``Engine.answer_batch``."""
        rows = unpadded(prompt)
        if not all(self._supports(row, sampling) for row in rows):
            return self._eager.answer_batch(prompt, sampling, max_new_tokens)
        batch = self.continuous()
        batch.add([
            Request(request_id=str(index), prompt=row, max_new_tokens=max_new_tokens, sampling=sampling)
            for index, row in enumerate(rows)
        ])  # fmt: skip
        answers: list[list[int]] = [[] for _ in rows]
        while batch.unfinished:
            for output in batch.step():
                answers[int(output.request_id)].append(output.token_id)
        batch.close()
        return [tuple(answer) for answer in answers]

    def continuous(self, capacity: int | None = None, *, interleave: bool = False) -> ContinuousBatch:
        """See ``Engine.continuous``. ``busy_s`` divides the time of each step by the rows that it computed."""
        self._batches = [batch for batch in self._batches if batch.unfinished]
        batch = VllmBatch(
            self._client,
            lambda request: self._prepare(request.prompt, request.sampling, reuse=request.reuse),
            SequentialBatch(self._eager, interleave=interleave),
            capacity=min(capacity or self._capacity, self._capacity),
            interleave=interleave,
        )
        self._batches.append(batch)
        return batch

    @torch.no_grad()
    def score(self, prefilled: Prefilled, token_ids: Sequence[int], drafts: Drafts | None = None) -> torch.Tensor:
        """See ``Engine.score``; drafts are ignored.

        Prompt and ``token_ids`` must fit into the model's context length.
        """
        prepared = prefilled.state
        if not isinstance(prepared, PreparedPrompt):
            return self._eager.score(prefilled, token_ids)
        if len(token_ids) == 1:
            return prefilled.logits[None]
        recorder = LogitsRecorder(forced=token_ids[1:])
        embeds = prepared.host.copy().with_token(self._embedding(token_ids[0]))
        # A salt identifies one sequence of embeddings; here the last one may differ.
        prefix = prepared.prefix.then(token_ids[0]) if prepared.prefix.salt is None else self._unshared_prefix()
        name = self._client.submit(embeds, Sampling(), len(token_ids) - 1, prefix=prefix, recorder=recorder)
        later = [recorder[index] for index, _ in enumerate(self._client.follow(name))]
        return torch.stack([prefilled.logits, *later])

    def is_end(self, token_id: int) -> bool:
        """See ``Engine.is_end``."""
        return token_id in self._language.end_ids

    def close(self) -> None:
        """Free vLLM's KV cache and graphs. The model keeps its weights; the engine cannot be used any more."""
        if self._engine is None:
            return
        for batch in self._batches:
            batch.close()
        self._batches.clear()
        self._vision.close()
        self._eager.close()
        shut_down(self._engine)
        del self._client
        self._engine = None
        _live.discard(self)
        if self._stream is not None:
            gc.collect()  # the compiler keeps the graphs in reference cycles
            torch.cuda.empty_cache()

    def _prepare(self, prompt: Prompt, sampling: Sampling, *, reuse: bool) -> PreparedPrompt | None:
        """Start the prompt's copy to the host; return None if vLLM does not support the prompt or the sampling."""
        if not self._supports(prompt, sampling):
            return None
        if sampling.temperature:
            self._notes["tokens that are drawn, not chosen, are drawn by vLLM"] = None
        shared = PrefixKey(token_keys=prompt.token_keys, features_digest=prompt.features_digest)
        prefix = shared if reuse else self._unshared_prefix()
        return PreparedPrompt(HostPrompt(prompt.inputs_embeds[0], self._stream), prefix)

    def _embedding(self, token: int) -> torch.Tensor:
        with torch.no_grad():
            row: torch.Tensor = self._language.embed(torch.tensor([token], device=self._language.device))
        return row

    def _unshared_prefix(self) -> PrefixKey:
        self._num_salts += 1
        return PrefixKey(salt=str(self._num_salts))

    def _supports(self, prompt: Prompt, sampling: Sampling) -> bool:
        """Return True if vLLM supports the prompt and the sampling; otherwise note the reason."""
        unsupported = None
        if more := [*prompt.decoder_inputs, *prompt.scene_inputs]:
            unsupported = f"prompts with {', '.join(more)}"
        elif not _counts_from_0(prompt.position_ids):
            unsupported = "prompts whose positions do not count from 0"
        elif prompt.length >= self._client.max_positions:
            unsupported = f"prompts of {self._client.max_positions} positions and more"
        elif sampling.temperature and not MIN_TEMPERATURE <= sampling.temperature <= MAX_TEMPERATURE:
            unsupported = f"temperatures below {MIN_TEMPERATURE} and above {MAX_TEMPERATURE}"
        if unsupported:
            self._notes[f"{unsupported} are answered by engine eager"] = None
        return unsupported is None

    @torch.no_grad()
    def _compare(self) -> None:
        """Compare prefill and decoding of random tokens with the model's own forward.

        Raises:
            Unsupported: the logits differ.
        """
        weight = self._language.embed.weight
        assert isinstance(weight, torch.Tensor)
        ids = torch.randint(len(weight), (max(_COMPARED),), generator=torch.Generator().manual_seed(0))
        sampling, tokens = Sampling(ignore_eos=True), ids[:3].tolist()
        for length in _COMPARED:
            prompt = Prompt(inputs_embeds=self._language.embed(ids[:length].to(weight.device))[None])
            try:
                ours = self.score(self.prefill(prompt, sampling, reuse=True), tokens)
                theirs = self._eager.score(self._eager.prefill(prompt, sampling), tokens)
            except NonFiniteError as error:
                raise Unsupported(str(error)) from None
            distance = float((ours - theirs).norm() / theirs.norm())
            # True for NaN as well.
            if not distance <= _TOLERANCE[weight.dtype]:
                raise Unsupported(f"its logits are {distance:.2g} from the model's own")


def _counts_from_0(position_ids: torch.Tensor | None) -> bool:
    if position_ids is None:
        return True
    expected = torch.arange(position_ids.shape[-1], device=position_ids.device)
    return position_ids.dim() == 2 and bool((position_ids == expected).all())


def _decode_seed(seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}: later tokens".encode()).digest()[:7])
