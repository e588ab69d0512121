"""Decode one or several sequences by a captured decode step. Answers take turns in using the captured step."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from unfuse.engines.graphed.cuda_graphs import GraphedCall, outside_inference_mode, set_device
from unfuse.engines.graphed.kv_cache import KVCache
from unfuse.engines.graphed.model_runner import DecodeBatch, ModelRunner
from unfuse.engines.sampling import TokenChooser
from unfuse.stages import Prefilled

_GROWTH: Final = 512
"""Positions by which a full KV cache grows."""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class SequenceState:
    """State of a prefilled prompt, carried by ``Prefilled.state``."""

    cache: KVCache
    position: int
    """Rotary position of the first token after the prompt."""


@dataclass(slots=True)
class DecodeStep:
    """A captured decode step, and the run that owns its tensors."""

    batch: DecodeBatch
    chooser: TokenChooser
    run: GraphedCall
    owner: weakref.ref[DecodeRun] | None = None
    """The run that the tensors' state belongs to. Weak, so that a finished answer and its KV cache are freed."""


class DecodeRun:
    """Answers that are being decoded. Steps are submitted before the tokens of earlier ones are read.

    Several runs may share one captured step: a run that submits after another one uploads its own state first.
    """

    def __init__(self, step: DecodeStep, rows: Sequence[Prefilled], runner: ModelRunner):
        self._step, self._rows, self._runner = step, rows, runner
        self._tokens = [row.token_id for row in rows]
        self._submitted = 0
        self._in_flight: deque[tuple[torch.Tensor, torch.cuda.Event | None]] = deque()
        self._retired: deque[list[int]] = deque()

    @outside_inference_mode()
    def submit(self) -> None:
        """Launch the next step; ``retire`` returns its tokens."""
        set_device(self._runner.llama.device)
        step = self._step
        if step.owner is None or step.owner() is not self or self._grow_caches():
            self._upload_state()
        step.run()
        self._submitted += 1
        token = step.batch.token
        if not token.is_cuda:
            self._in_flight.append((token.clone(), None))
            return
        on_host = torch.empty(len(token), dtype=token.dtype, pin_memory=True)
        on_host.copy_(token, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._in_flight.append((on_host, event))

    def retire(self) -> list[int]:
        """Wait for the oldest step that was not retired, and return its tokens, one for each sequence."""
        if not self._retired:
            self._retire()
        return self._retired.popleft()

    @outside_inference_mode()
    def forced(self, token: int) -> torch.Tensor:
        """Return the logits ``[V]`` after a given token instead of the one that would have been chosen."""
        set_device(self._runner.llama.device)
        self._tokens = [token]
        self._upload_state()
        self._step.run()
        self._submitted += 1
        return self._step.batch.logits[0].clone()

    def _grow_caches(self) -> bool:
        """Grow full KV caches; return whether any of them has moved."""
        moved = False
        for row in self._rows:
            cache, written = row.state.cache, row.prompt_tokens + self._submitted
            if written >= cache.capacity:
                cache.reserve(written + _GROWTH, written)
                moved = True
        return moved

    def _upload_state(self) -> None:
        """Copy this run's state to the tensors that the step reads."""
        while self._in_flight:
            self._retire()
        self._grow_caches()
        step, batch = self._step, self._step.batch
        step.owner = weakref.ref(self)
        work, dummy = batch.work, batch.work.dummy_cache
        caches = [row.state.cache for row in self._rows]
        idle = batch.rows - len(self._rows)

        def put(target: torch.Tensor, values: list[int], rest: int) -> None:
            target.copy_(torch.tensor([*values, *[rest] * idle], dtype=target.dtype))

        put(batch.token, self._tokens, 0)
        put(batch.length, [row.prompt_tokens + self._submitted for row in self._rows], 0)
        put(batch.position, [row.state.position + self._submitted for row in self._rows], 0)
        put(batch.caches, [work.offset(cache) for cache in caches], work.offset(dummy))
        put(batch.capacity, [cache.capacity for cache in caches], dummy.capacity)
        step.chooser.set(self._rows[0].sampling)

    def _retire(self) -> None:
        on_host, event = self._in_flight.popleft()
        if event is not None:
            event.synchronize()
        self._tokens = on_host.tolist()[: len(self._rows)]
        self._retired.append(self._tokens)
