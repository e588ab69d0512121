"""Engine ``graphed``: Stage 4 of a LLaMA as CUDA graphs over Triton and CUDA kernels."""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import nn

from unfuse.engines.base import CountedRows, DraftSupport
from unfuse.engines.batching import ContinuousBatch
from unfuse.engines.eager import EagerEngine
from unfuse.engines.graphed.autotune import Autotuner
from unfuse.engines.graphed.batch import BatchSettings, GraphedBatch
from unfuse.engines.graphed.cuda_graphs import GraphedCall, outside_inference_mode, set_device
from unfuse.engines.graphed.decoding import DecodeRun, DecodeStep, SequenceState
from unfuse.engines.graphed.kernels.argmax import argmax
from unfuse.engines.graphed.kernels.skinny_gemm import MAX_SKINNY_ROWS
from unfuse.engines.graphed.kv_cache import KVCache, free_cache_bytes, new_kv_cache
from unfuse.engines.graphed.llama import find_llama
from unfuse.engines.graphed.megakernel import Megakernel
from unfuse.engines.graphed.model_runner import ModelRunner, extend_bucket
from unfuse.engines.graphed.prefill import PrefillRunner, PromptRows
from unfuse.engines.graphed.slots import Slots
from unfuse.engines.graphed.speculation import SpeculativeRun, SpeculativeStep
from unfuse.engines.graphed.vision import CapturedVision
from unfuse.engines.graphed.workspace import row_bucket
from unfuse.engines.language_model import LanguageModel
from unfuse.engines.padding import unpadded
from unfuse.engines.prefix import common_prefix
from unfuse.engines.sampling import TokenChooser, require_valid
from unfuse.engines.sequential import SequentialBatch
from unfuse.engines.unsupported import Unsupported
from unfuse.errors import NonFiniteError
from unfuse.finite import INVALID_TOKEN
from unfuse.speculation.drafter import Drafts
from unfuse.stages import Prefilled, Prompt, Sampling
from unfuse.unavailable import Unavailable

_TOLERANCE: Final = {torch.float32: 2e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
"""Largest relative L2 distance from the logits of the model's own forward."""
_COMPARED: Final = MAX_SKINNY_ROWS + 8
"""Rows of the prompts on which a new engine is compared: some passes use skinny GEMMs, others cuBLAS."""
_MIN_ANSWER: Final = 64
"""Positions that are allocated for an answer at least, and for the first answer: its limit is not known yet."""
_MAX_ANSWER: Final = 1024
"""Positions that are allocated for an answer at most; a longer answer grows its KV cache. Most answers end early."""


@dataclass(frozen=True, slots=True)
class _LastPrompt:
    """The last prompt; the next prompt may reuse its KV cache."""

    token_keys: tuple[int, ...]
    features_digest: str | None
    cache: KVCache
    state: weakref.ref[SequenceState]
    """State of the prefilled prompt; while it is alive, its answer may still be decoded from the cache."""


class GraphedEngine:
    """Prefill and decode of a LLaMA by the project's kernels; each decode step is one CUDA graph."""

    name = "graphed"

    def __init__(
        self, language: LanguageModel, vision: Mapping[str, nn.Module] | None = None, *, tuning: Path | None = None
    ):
        """Join the model's weights in place, capture nothing yet, and compare the logits with the model's own forward.

        Args:
            language: the language model.
            vision: modules of Stage 3 to run as graphs.
            tuning: folder of the tuned kernel configs; by default in the user's cache.

        Raises:
            Unsupported: the model is no LLaMA, or its logits differ.
        """
        set_device(language.device)
        self._language = language
        self._end_ids = torch.tensor(language.end_ids, dtype=torch.long, device=language.device)
        with outside_inference_mode():
            llama = find_llama(language)
            tuner = Autotuner(llama.device, tuning)
            self._runner = ModelRunner(llama, tuner)
            self._runner.tune_decode(1)
        self._steps: dict[tuple[int, bool, bool], DecodeStep] = {}
        self._speculative_steps: dict[tuple[bool, bool], SpeculativeStep] = {}
        self._batches: weakref.WeakSet[GraphedBatch] = weakref.WeakSet()
        self._slots: list[Slots] = []
        self._last: _LastPrompt | None = None
        self._answer_positions = _MIN_ANSWER
        self._pool = torch.cuda.graph_pool_handle() if llama.device.type == "cuda" else None
        self._prefill = PrefillRunner(self._runner, self._pool)
        with outside_inference_mode():
            self._vision = CapturedVision(vision or {}, tuner, self._pool)
        self._eager = EagerEngine(language)
        """For prompts that need the model's own forward."""
        self._compare()

    @property
    def notes(self) -> tuple[str, ...]:
        """See ``Engine.notes``."""
        return (*self._runner.notes, *self._vision.notes, *self._prefill.notes)

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """See ``Engine.encoding``."""
        set_device(self._runner.llama.device)
        with outside_inference_mode(), self._vision.active():
            yield

    @outside_inference_mode()
    def prefill(self, prompt: Prompt, sampling: Sampling, *, reuse: bool = False) -> Prefilled:
        """See ``Engine.prefill``."""
        set_device(self._runner.llama.device)
        if not self._prefill.supports(prompt):
            return self._eager.prefill(prompt, sampling, reuse=reuse)
        prefilled = self._prefilled(prompt, sampling, reuse=reuse)
        require_valid(prefilled.token_id, "prefill", prefilled.logits)
        return prefilled

    def _prefilled(self, prompt: Prompt, sampling: Sampling, *, reuse: bool = False) -> Prefilled:
        """Prefill a prompt that ``PrefillRunner`` supports; its token may be ``INVALID_TOKEN``."""
        keys, length = prompt.token_keys if reuse else (), prompt.length
        cache = self._cache_for(keys, prompt.features_digest, length)
        reused = cache.length
        text = prompt.text_after(reused) if reused else None
        if text is not None and len(text) <= MAX_SKINNY_ROWS:
            logits, following = self._prefill.text(text, cache), length
        else:
            embeds, positions, following = self._prefill.rows(prompt)
            logits = self._prefill([PromptRows(embeds[reused:], positions[:, reused:], cache)])[0]
        logits = logits.clone()
        chooser = TokenChooser(sampling, self._end_ids, logits.device)
        token = chooser(logits, following)
        state = SequenceState(cache, following)
        if keys:
            self._last = _LastPrompt(keys, prompt.features_digest, cache, weakref.ref(state))
        return Prefilled(
            # The host waits for the device here.
            token_id=int(token),
            logits=logits,
            prompt_tokens=length,
            reused_prefix_tokens=reused,
            sampling=sampling,
            state=state,
        )

    def counted_rows(self, prompt: Prompt) -> CountedRows | Unavailable:
        """See ``Engine.counted_rows``. Launches and graphs declare their matrix products."""
        if not self._prefill.supports(prompt):
            return self._eager.counted_rows(prompt)
        return CountedRows(extend_bucket(prompt.length), attention=False)

    @property
    def draft_support(self) -> DraftSupport:
        """See ``Engine.draft_support``."""
        if self._runner.megakernel is not None:
            return DraftSupport(verified=True, faster=True)
        return DraftSupport(
            verified=False, note="only the persistent kernel (bfloat16, a GPU like the H100) verifies several tokens"
        )

    def decode(self, prefilled: Prefilled, max_new_tokens: int, drafts: Drafts | None = None) -> Iterator[int]:
        """See ``Engine.decode``."""
        if not isinstance(prefilled.state, SequenceState):
            yield from self._eager.decode(prefilled, max_new_tokens, drafts)
            return
        token = prefilled.token_id
        if self.is_end(token) or max_new_tokens == 1:
            yield token
            return
        self._answer_positions = min(max(_MIN_ANSWER, max_new_tokens), _MAX_ANSWER)
        if drafts is not None and self._runner.megakernel is not None:
            answer = self._speculative_run(self._runner.megakernel, prefilled, max_new_tokens, drafts)
            yield token
            yield from answer.tokens()
            return
        run = self._decode_run([prefilled], max_new_tokens)
        run.submit()
        yield token
        for written in range(2, max_new_tokens + 1):
            # The next step is submitted before this step's token is read: the device never waits for the host.
            if written < max_new_tokens:
                run.submit()
            (token,) = run.retire()
            require_valid(token, "decode")
            yield token
            if self.is_end(token):
                return

    @outside_inference_mode()
    def answer_batch(self, prompt: Prompt, sampling: Sampling, max_new_tokens: int) -> list[tuple[int, ...]]:
        """See ``Engine.answer_batch``."""
        if not self._prefill.supports(prompt):
            return self._eager.answer_batch(prompt, sampling, max_new_tokens)
        self._answer_positions = min(max(_MIN_ANSWER, max_new_tokens), _MAX_ANSWER)
        set_device(self._runner.llama.device)
        rows = [self._prefilled(row, sampling) for row in unpadded(prompt)]
        groups = (rows[at : at + MAX_SKINNY_ROWS] for at in range(0, len(rows), MAX_SKINNY_ROWS))
        return list(itertools.chain.from_iterable(self._decode_together(group, max_new_tokens) for group in groups))

    def continuous(self, capacity: int | None = None, *, interleave: bool = False) -> ContinuousBatch:
        """See ``Engine.continuous``."""
        device = self._runner.llama.device
        batch = GraphedBatch(
            self._runner,
            self._prefill,
            self._slots_for,
            SequentialBatch(self._eager, capacity, interleave=interleave),
            self._end_ids,
            BatchSettings(capacity=capacity, interleave=interleave, max_cache_bytes=free_cache_bytes(device)),
        )
        self._batches.add(batch)
        return batch

    def _slots_for(self, batch: GraphedBatch) -> Slots:
        """Return slots that no batch owns, or new ones."""
        free = (slots for slots in self._slots if slots.owner is None or slots.owner() is None)
        slots = next(free, None)
        if slots is None:
            capture = functools.partial(GraphedCall, device=self._runner.llama.device, pool=self._pool)
            slots = Slots(self._runner, capture, self._end_ids)
            self._slots.append(slots)
        slots.owner = weakref.ref(batch)
        return slots

    @outside_inference_mode()
    def score(self, prefilled: Prefilled, token_ids: Sequence[int], drafts: Drafts | None = None) -> torch.Tensor:
        """See ``Engine.score``."""
        if not isinstance(prefilled.state, SequenceState):
            return self._eager.score(prefilled, token_ids, drafts)
        rows = [prefilled.logits]
        if len(token_ids) > 1 and drafts is not None and self._runner.megakernel is not None:
            passes = self._speculative_run(self._runner.megakernel, prefilled, len(token_ids), drafts)
            passes.force(token_ids)
            rows += [row for logits in passes.scores() for row in logits]
        elif len(token_ids) > 1:
            run = self._decode_run([prefilled], len(token_ids))
            rows += [run.forced(token) for token in token_ids[:-1]]
        return torch.stack(rows)

    def is_end(self, token_id: int) -> bool:
        """See ``Engine.is_end``."""
        return token_id in self._language.end_ids

    def close(self) -> None:
        """Free graphs, KV caches and workspaces. The engine can still be used: it captures again.

        An answer that ``decode`` is still writing keeps its step and workspace until it ends.
        """
        for batch in list(self._batches):
            batch.close()
        self._slots.clear()
        self._last = None
        self._steps.clear()
        self._speculative_steps.clear()
        self._prefill.close()
        self._runner.close()
        self._vision.close()
        self._eager.close()
        if self._pool is not None:
            torch.cuda.empty_cache()

    def _cache_for(self, keys: tuple[int, ...], digest: str | None, length: int) -> KVCache:
        """Return a KV cache for a prompt, with the prefix that it has in common with the last prompt."""
        last, capacity = self._last, length + self._answer_positions
        if last is None or not keys:
            return new_kv_cache(self._runner.llama, capacity)
        same = common_prefix(last.token_keys, keys, same_features=last.features_digest == digest)
        # At least one position must be computed: its logits give the first token.
        same = min(same, length - 1)
        if last.state() is None and last.cache.capacity >= capacity:
            # The last prompt cannot be decoded any more, so the positions after the prefix are free.
            self._last = None
            last.cache.length = same
            return last.cache
        return last.cache.copy_prefix(same, capacity)

    def _step(self, rows: int, sampling: Sampling) -> DecodeStep:
        key = row_bucket(rows), sampling.temperature == 0, sampling.ignore_eos
        if key not in self._steps:
            runner, device = self._runner, self._runner.llama.device
            runner.tune_decode(key[0])
            batch = runner.decode_batch(key[0])
            chooser = TokenChooser(sampling, self._end_ids, device)
            greedy, eos_masked = key[1], torch.full((key[0],), sampling.ignore_eos, device=device)
            # A closure over the engine would be a reference cycle.
            end_ids = self._end_ids

            def decode() -> None:
                runner.decode(batch)
                if greedy:
                    argmax(batch.token, batch.logits, end_ids, eos_masked)
                else:
                    batch.token.copy_(chooser(batch.logits, batch.position))

            self._steps[key] = DecodeStep(batch, chooser, GraphedCall(decode, device, self._pool))
        return self._steps[key]

    @outside_inference_mode()
    def _decode_run(self, rows: Sequence[Prefilled], max_new_tokens: int) -> DecodeRun:
        for row in rows:
            self._reserve(row, max_new_tokens)
        return DecodeRun(self._step(len(rows), rows[0].sampling), rows, self._runner)

    @outside_inference_mode()
    def _reserve(self, prefilled: Prefilled, max_new_tokens: int) -> None:
        """Make room for an answer in the KV cache."""
        prompt = prefilled.prompt_tokens
        prefilled.state.cache.reserve(prompt + min(max_new_tokens, _MAX_ANSWER), prompt)

    @outside_inference_mode()
    def _speculative_run(
        self, megakernel: Megakernel, prefilled: Prefilled, max_new_tokens: int, drafts: Drafts
    ) -> SpeculativeRun:
        self._reserve(prefilled, max_new_tokens)
        sampling = prefilled.sampling
        key = sampling.temperature == 0, sampling.ignore_eos
        if key not in self._speculative_steps:
            llama = self._runner.llama
            chooser = None if key[0] else TokenChooser(sampling, self._end_ids, llama.device)
            capture = functools.partial(GraphedCall, device=llama.device, pool=self._pool)
            self._speculative_steps[key] = SpeculativeStep(
                llama, megakernel, self._runner.work.base_pointer, self._end_ids, chooser, capture
            )
        return SpeculativeRun(self._speculative_steps[key], prefilled, max_new_tokens, drafts)

    def _decode_together(self, rows: Sequence[Prefilled], max_new_tokens: int) -> list[tuple[int, ...]]:
        answers = [[row.token_id] for row in rows]

        def ended(answer: list[int]) -> bool:
            return answer[-1] == INVALID_TOKEN or self.is_end(answer[-1])

        def all_ended() -> bool:
            return all(map(ended, answers))

        if max_new_tokens > 1 and not all_ended():
            run = self._decode_run(rows, max_new_tokens)
            run.submit()
            for written in range(2, max_new_tokens + 1):
                if written < max_new_tokens:
                    run.submit()
                for answer, token in zip(answers, run.retire(), strict=True):
                    # A row that has ended is computed on until the last row ends.
                    if not ended(answer):
                        answer.append(token)
                if all_ended():
                    break
        return [tuple(answer) for answer in answers]

    @outside_inference_mode()
    def _compare(self) -> None:
        """Compare prefill, extension and decoding of random tokens with the model's own forward.

        Raises:
            Unsupported: the logits differ.
        """
        language, weight = self._language, self._runner.llama.embedding
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(len(weight), (_COMPARED,), generator=generator).to(weight.device)
        sampling, tokens = Sampling(ignore_eos=True), ids[:3].tolist()

        def prompt(length: int) -> Prompt:
            keys = tuple(ids[:length].tolist())
            positions = None
            if (axes := self._runner.axes) > 1:
                # With equal positions on all axes, a wrong assignment of the axes would not show.
                count = torch.arange(length, device=ids.device)
                positions = torch.stack([count + 7 * axis * (count < _COMPARED // 2) for axis in range(axes)])[:, None]
            embeds = language.embed(ids[:length])[None]
            return Prompt(inputs_embeds=embeds, token_keys=keys, position_ids=positions)

        eager = self._eager
        for length, reuse in ((len(ids) - 2, True), (len(ids), True)):
            try:
                ours = self.score(self.prefill(prompt(length), sampling, reuse=reuse), tokens)
                theirs = eager.score(eager.prefill(prompt(length), sampling), tokens)
            except NonFiniteError as error:
                raise Unsupported(str(error)) from None
            distance = float((ours - theirs).norm() / theirs.norm())
            # True for NaN as well.
            if not distance <= _TOLERANCE[weight.dtype]:
                raise Unsupported(f"its logits are {distance:.2g} from the model's own")
        self._last = None
        eager.close()
