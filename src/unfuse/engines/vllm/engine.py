"""Engine ``vllm``: prompts go to vLLM as embeddings, features in place; it answers many of them together.

``prefill`` and ``decode`` are two requests of one token and of the others: vLLM has no state that could be handed from
one to the other, and its prefix cache gives the second all of the first's whole blocks, so ``decode`` begins with at
most a block of positions that are computed again. Nothing else is taken over between prompts unless ``reuse`` is asked
for: each has a salt of its own.
"""

from __future__ import annotations

import gc
import hashlib
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from unfuse.engines.batching import ContinuousBatch, Request
from unfuse.engines.eager import EagerEngine
from unfuse.engines.graphed.autotune import Autotuner
from unfuse.engines.graphed.vision import CapturedVision
from unfuse.engines.language_model import LanguageModel
from unfuse.engines.padding import unpadded
from unfuse.engines.sequential import SequentialBatch
from unfuse.engines.unsupported import Unsupported
from unfuse.engines.vllm.building import build, closed
from unfuse.engines.vllm.continuous import VllmBatch
from unfuse.engines.vllm.prefixes import Prefix
from unfuse.engines.vllm.requests import COLDEST, HOTTEST, Landing, Requests
from unfuse.engines.vllm.watched import Rows, Watched
from unfuse.stages import Prefilled, Prompt, Sampling

TOGETHER: Final = 128
"""Requests that are written at the same time: more gain little once all weights are read for so many rows."""
_TOLERANCE: Final = {torch.float32: 2e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
"""Largest relative distance of logits from the model's own at which both compute the same."""
_COMPARED: Final = (40, 48)
"""Positions of the prompts that are compared: more than a block, the second beginning with the first."""


_live: weakref.WeakSet[VllmEngine] = weakref.WeakSet()
"""At most one: vLLM has its groups of processes for the whole process, and takes them down with any engine."""


@dataclass(frozen=True, slots=True)
class _State:
    prompt: Landing
    prefix: Prefix


class VllmEngine:
    """Prefill and decode of a decoder that vLLM knows, on the loaded model's own weights."""

    name = "vllm"

    def __init__(
        self,
        language: LanguageModel,
        vision: Mapping[str, nn.Module] | None = None,
        *,
        capacity: int = TOGETHER,
        enforce_eager: bool = False,
        cache: Path | None = None,
    ):
        """Builds vLLM in this process, and compares it with the model's own forward.

        Args:
            language: what to run.
            vision: modules of stage 3 to run as graphs, as engine ``graphed`` does.
            capacity: requests written at the same time at most.
            enforce_eager: neither compile nor capture steps: a start in seconds, slower answers.
            cache: folder of what is kept between runs; by default in the user's cache.

        Raises:
            Unsupported: vLLM does not know the model, computes something else, or runs another one in this process.
        """
        if _live:
            gc.collect()  # what was left without a word
        if _live:
            raise Unsupported("vLLM runs another model in this process, which has not been closed")
        self._language = language
        self._end_ids = torch.tensor(language.end_ids, dtype=torch.long, device=language.device)
        on_gpu = language.device.type == "cuda"
        self._watched = Watched()
        self._engine: Any = build(
            language, self._watched, capacity=capacity, enforce_eager=enforce_eager, cache=cache
        )  # fmt: skip
        _live.add(self)
        self._requests = Requests(self._engine, self._watched, language.end_ids)
        self._capacity = capacity
        self._stream = torch.cuda.Stream(language.device) if on_gpu else None
        self._batches: list[VllmBatch] = []
        self._salts = 0
        with torch.no_grad():
            tuner = Autotuner(language.device, cache)
            self._vision = CapturedVision(vision or {}, tuner, torch.cuda.graph_pool_handle() if on_gpu else None)
        self._eager = EagerEngine(language)
        """For prompts that this engine does not take."""
        import vllm

        self._noted: dict[str, None] = {f"vLLM {vllm.__version__}": None}
        try:
            self._compare()
        except Unsupported:
            self.close()
            raise

    @property
    def notes(self) -> tuple[str, ...]:
        """See ``Engine.notes``."""
        return (*self._noted, *self._vision.notes)

    def encoding(self) -> AbstractContextManager[None]:
        """See ``Engine.encoding``."""
        return self._vision.active()

    @torch.no_grad()
    def prefill(self, prompt: Prompt, sampling: Sampling, *, reuse: bool = False) -> Prefilled:
        """See ``Engine.prefill``."""
        if self._refuses(prompt, sampling):
            return self._eager.prefill(prompt, sampling, reuse=reuse)
        state = _State(self._landing(prompt), self._prefix(prompt, reuse))
        self._note(sampling)
        rows = Rows(barred=self._end_ids if sampling.ignore_eos else None)
        name = self._requests.submit(state.prompt.prompt(), sampling, 1, prefix=state.prefix, rows=rows)
        (said,) = self._requests.follow(name)
        return Prefilled(
            token_id=said.token_id,
            logits=rows[0],
            prompt_tokens=state.prompt.length,
            reused_prefix_tokens=said.cached if reuse else 0,
            sampling=sampling,
            state=state,
        )

    def decode(self, prefilled: Prefilled, max_new_tokens: int) -> Iterator[int]:
        """See ``Engine.decode``; an answer also ends where the model's positions do."""
        state = prefilled.state
        if not isinstance(state, _State):
            yield from self._eager.decode(prefilled, max_new_tokens)
            return
        token = prefilled.token_id
        yield token
        later = min(max_new_tokens - 1, self._requests.longest - state.prompt.length - 1)
        if self.is_end(token) or later < 1:
            return
        prompt = state.prompt.followed_by(self._embedded(token))
        # The first draw is done; the same seed would draw the second token with the first one's noise.
        sampling = replace(prefilled.sampling, seed=_another_seed(prefilled.sampling.seed))
        name = self._requests.submit(prompt, sampling, later, prefix=state.prefix.then(token))
        for said in self._requests.follow(name):
            yield said.token_id

    @torch.no_grad()
    def answer_batch(self, prompt: Prompt, sampling: Sampling, max_new_tokens: int) -> list[tuple[int, ...]]:
        """See ``Engine.answer_batch``."""
        rows = unpadded(prompt)
        if any(self._refuses(row, sampling) for row in rows):
            return self._eager.answer_batch(prompt, sampling, max_new_tokens)
        batch = self.continuous()
        batch.add([
            Request(request_id=str(index), prompt=row, max_new_tokens=max_new_tokens, sampling=sampling)
            for index, row in enumerate(rows)
        ])  # fmt: skip
        answers: list[list[int]] = [[] for _ in rows]
        while batch.unfinished:
            for written in batch.step():
                answers[int(written.request_id)].append(written.token_id)
        batch.close()
        return [tuple(answer) for answer in answers]

    def continuous(self, capacity: int | None = None, *, interleave: bool = False) -> ContinuousBatch:
        """See ``Engine.continuous``; ``busy_s`` is the time of steps, shared out by the positions they computed."""
        self._batches = [batch for batch in self._batches if batch.unfinished]
        batch = VllmBatch(
            self._requests,
            capacity=min(capacity or self._capacity, self._capacity),
            interleave=interleave,
            landing=self._admitted,
            prefix=self._prefix,
            others=SequentialBatch(self._eager, interleave=interleave),
            refuses=lambda request: self._refuses(request.prompt, request.sampling),
        )
        self._batches.append(batch)
        return batch

    @torch.no_grad()
    def score(self, prefilled: Prefilled, token_ids: Sequence[int]) -> torch.Tensor:
        """See ``Engine.score``; ``token_ids`` may not reach beyond the model's positions."""
        state = prefilled.state
        if not isinstance(state, _State):
            return self._eager.score(prefilled, token_ids)
        if len(token_ids) == 1:
            return prefilled.logits[None]
        rows = Rows(forced=token_ids[1:])
        prompt = state.prompt.copy().followed_by(self._embedded(token_ids[0]))
        # A salt stands for one sequence of rows, and here the last one may be another.
        prefix = state.prefix.then(token_ids[0]) if state.prefix.salt is None else self._alone()
        name = self._requests.submit(prompt, Sampling(), len(token_ids) - 1, prefix=prefix, rows=rows)
        later = [rows[at] for at, _ in enumerate(self._requests.follow(name))]
        return torch.stack([prefilled.logits, *later])

    def is_end(self, token_id: int) -> bool:
        """See ``Engine.is_end``."""
        return token_id in self._language.end_ids

    def close(self) -> None:
        """Frees vLLM's cache and graphs; the model stays, on what were vLLM's weights, and the engine is done for."""
        if self._engine is None:
            return
        for batch in self._batches:
            batch.close()
        self._batches.clear()
        self._vision.close()
        self._eager.close()
        closed(self._engine)
        del self._requests
        self._engine = None
        _live.discard(self)
        if self._stream is not None:
            gc.collect()  # what compiled it holds it in circles
            torch.cuda.empty_cache()

    def _landing(self, prompt: Prompt) -> Landing:
        return Landing(prompt.inputs_embeds[0], self._stream)

    def _admitted(self, request: Request) -> Landing:
        self._note(request.sampling)
        return self._landing(request.prompt)

    def _embedded(self, token: int) -> torch.Tensor:
        with torch.no_grad():
            row: torch.Tensor = self._language.embed(torch.tensor([token], device=self._language.device))
        return row

    def _prefix(self, prompt: Prompt, reuse: bool) -> Prefix:
        return Prefix(keys=prompt.token_keys, features_digest=prompt.features_digest) if reuse else self._alone()

    def _alone(self) -> Prefix:
        self._salts += 1
        return Prefix(salt=str(self._salts))

    def _note(self, sampling: Sampling) -> None:
        if sampling.temperature:
            self._noted["tokens that are drawn, not chosen, are drawn by vLLM"] = None

    def _refuses(self, prompt: Prompt, sampling: Sampling) -> bool:
        """Whether vLLM cannot answer so; notes why."""
        why = None
        if more := [*prompt.decoder_inputs, *prompt.scene_inputs]:
            why = f"prompts with {', '.join(more)}"
        elif not _counts(prompt.position_ids):
            why = "prompts whose positions do not count from 0"
        elif prompt.length >= self._requests.longest:
            why = f"prompts of {self._requests.longest} positions and more"
        elif sampling.temperature and not COLDEST <= sampling.temperature <= HOTTEST:
            why = f"temperatures below {COLDEST} and above {HOTTEST}"
        if why:
            self._noted[f"{why} are answered by engine eager"] = None
        return why is not None

    @torch.no_grad()
    def _compare(self) -> None:
        """Holds vLLM against the model's own forward, on rows that mean nothing.

        Raises:
            Unsupported: it computes something else.
        """
        weight = self._language.embed.weight
        assert isinstance(weight, torch.Tensor)
        ids = torch.randint(len(weight), (max(_COMPARED),), generator=torch.Generator().manual_seed(0))
        asked, tokens = Sampling(ignore_eos=True), ids[:3].tolist()
        for length in _COMPARED:
            prompt = Prompt(inputs_embeds=self._language.embed(ids[:length].to(weight.device))[None])
            mine = self.score(self.prefill(prompt, asked, reuse=True), tokens)
            own = self._eager.score(self._eager.prefill(prompt, asked), tokens)
            apart = float((mine - own).norm() / own.norm())
            # Not a number is far apart.
            if not apart <= _TOLERANCE[weight.dtype]:
                raise Unsupported(f"its logits are {apart:.2g} from the model's own")


def _counts(position_ids: torch.Tensor | None) -> bool:
    if position_ids is None:
        return True
    counted = torch.arange(position_ids.shape[-1], device=position_ids.device)
    return position_ids.dim() == 2 and bool((position_ids == counted).all())


def _another_seed(seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}: later tokens".encode()).digest()[:7])
