"""Prefill: passes over the rows of prompts that are not cached yet, of one prompt or of several packed together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from unfuse.engines.graphed.cuda_graphs import GraphedCall
from unfuse.engines.graphed.kernels.skinny_gemm import MAX_SKINNY_ROWS
from unfuse.engines.graphed.kv_cache import KVCache
from unfuse.engines.graphed.model_runner import ExtendBatch, ModelRunner, extend_bucket
from unfuse.stages import Prompt

_LONGEST_CAPTURED: Final = 2048
"""Rows. The launches of a longer pass are short beside the pass itself, so it is not captured."""
_CACHED_LENGTH: Final = 2
"""Row of ``metadata`` with the number of cached positions before each prompt's rows."""
_OFFSET: Final = 4
"""Row of ``metadata`` with each prompt's offset in the packed rows."""
MAX_PROMPTS: Final = 16
"""Prompts of one pass."""
MAX_PASS_ROWS: Final = 2556
"""Rows of a pass over several prompts. Longer passes are no faster a row, and delay the first tokens of all prompts."""


@dataclass(frozen=True, slots=True)
class PromptRows:
    """The rows of one prompt, and the KV cache that their keys and values go to."""

    embeds: torch.Tensor
    """``[L, H]``, without the cached positions."""
    positions: torch.Tensor
    """int32 ``[A, L]``, rotary positions."""
    cache: KVCache
    prefix: KVCache | None = None
    """Cache of another prompt that holds the first ``prefix_length`` positions; ``cache`` holds those after them."""
    prefix_length: int = 0


class TextGraph:
    """A captured pass over text after a cached prompt: one copy to the device, then one graph."""

    def __init__(self, runner: ModelRunner, rows: int, pool: Any):
        """Capture the pass.

        Args:
            runner: runs it.
            rows: tokens at most.
            pool: memory pool of the graphs.
        """
        runner.tune_extend(rows, 1)
        batch, device = runner.extend_batch(rows), runner.llama.device
        self._inputs = torch.cat([batch.metadata[:, 0], batch.metadata.new_zeros(rows)])
        metadata, ids = self._inputs.split([len(batch.metadata), rows])
        batch = replace(batch, metadata=metadata[:, None])
        counted = torch.arange(rows, device=device).expand(runner.axes, -1)

        def extend() -> None:
            torch.index_select(runner.llama.embedding, 0, ids, out=batch.embeds)
            torch.add(counted, metadata[_CACHED_LENGTH], out=batch.positions)
            runner.extend(batch)

        self._run = GraphedCall(extend, device, pool)
        self._staged = torch.zeros(self._inputs.shape, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._values = self._staged.numpy()
        self._copied = torch.cuda.Event() if device.type == "cuda" else None
        self.work = batch.work
        self.logits = batch.logits[0]

    def __call__(self, inputs: list[int]) -> None:
        """Launch the pass.

        Args:
            inputs: the eight numbers of ``ExtendBatch.metadata``, then the token ids.
        """
        if self._copied is not None:
            self._copied.synchronize()
        self._values[: len(inputs)] = inputs
        self._inputs.copy_(self._staged, non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        self._run()


class PrefillRunner:
    """Runs prefill passes. The host never waits for one."""

    def __init__(self, runner: ModelRunner, pool: Any):
        """Capture nothing yet.

        Args:
            runner: runs the passes.
            pool: memory pool of the graphs.
        """
        self._runner, self._pool = runner, pool
        self._captured: dict[tuple[int, int, bool], tuple[ExtendBatch, Callable[[], None]]] = {}
        self._text_graphs: dict[int, TextGraph] = {}
        self._packed: ExtendBatch | None = None
        """Tensors for passes over several prompts, of any length."""
        self._counted = torch.empty(runner.axes, 0, dtype=torch.int32)
        """Positions 0, 1, 2, ... of a prompt without positions of its own."""
        self._unsupported: dict[str, None] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """Kinds of prompts that were left to engine eager, one sentence each."""
        return tuple(self._unsupported)

    def supports(self, prompt: Prompt) -> bool:
        """Return whether the prompt consists of embedding rows only.

        Other inputs (a mask, features for deeper layers) need the model's own forward; they are added to ``notes``.
        """
        more = [*prompt.decoder_inputs, *prompt.scene_inputs]
        if more:
            self._unsupported[f"prompts with {', '.join(more)} are answered by engine eager"] = None
        return not more

    def rows(self, prompt: Prompt) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Return the embeddings ``[L, H]`` of one prompt, its positions int32 ``[A, L]``, and the position after it."""
        embeds, ids, axes = prompt.inputs_embeds[0], prompt.position_ids, self._runner.axes
        if ids is None:
            if self._counted.shape[1] < len(embeds):
                self._counted = torch.arange(2 * len(embeds), dtype=torch.int32, device=embeds.device).expand(axes, -1)
            return embeds, self._counted[:, : len(embeds)], len(embeds)
        # Under M-RoPE a fourth row in front counts the text alone.
        ids = ids[-axes:, 0] if ids.dim() == 3 else ids[:1].expand(axes, -1)
        return embeds, ids.to(torch.int32), int(ids[0, -1]) + 1

    def __call__(self, prompts: Sequence[PromptRows]) -> torch.Tensor:
        """Write keys and values into the prompts' caches; the caches grow by the rows.

        Returns:
            float32 logits ``[len(prompts), V]``, in memory that the next pass overwrites.
        """
        shared = any(prompt.prefix_length for prompt in prompts)
        batch, run = self._batch_for([len(prompt.embeds) for prompt in prompts], shared)
        work, at = batch.work, 0
        # Each column of ``metadata`` describes a prompt. A column without a prompt has no rows, and its offset is the
        # end of the packed rows.
        metadata = [[batch.rows if line == _OFFSET else 0] * batch.sequences for line in range(len(batch.metadata))]
        for index, prompt in enumerate(prompts):
            rows, cache = len(prompt.embeds), prompt.cache
            batch.embeds[at : at + rows].copy_(prompt.embeds)
            batch.positions[:, at : at + rows].copy_(prompt.positions)
            own = work.offset(cache), cache.capacity, cache.length, rows, at
            prefix = (work.offset(prompt.prefix), prompt.prefix.capacity) if prompt.prefix else (0, 1)
            for line, number in zip(metadata, (*own, *prefix, prompt.prefix_length), strict=True):
                line[index] = number
            cache.length += rows
            at += rows
        # PyTorch does not reuse pinned memory before the copy from it has finished.
        staged = torch.tensor(metadata, pin_memory=batch.embeds.is_cuda)
        batch.metadata.copy_(staged, non_blocking=True)
        run()
        return batch.logits[: len(prompts)]

    def text(self, ids: Sequence[int], cache: KVCache) -> torch.Tensor:
        """Extend a cached prompt by text, with one copy to the device.

        Args:
            ids: up to 64 tokens.
            cache: grows by them.

        Returns:
            float32 logits ``[V]``, in memory that the next pass overwrites.
        """
        rows, cached = len(ids), cache.length
        bucket = extend_bucket(rows)
        if bucket not in self._text_graphs:
            self._text_graphs[bucket] = TextGraph(self._runner, bucket, self._pool)
        graph = self._text_graphs[bucket]
        graph([graph.work.offset(cache), cache.capacity, cached, rows, 0, 0, 1, 0, *ids])
        cache.length += rows
        return graph.logits

    def close(self) -> None:
        """Free the graphs and their tensors."""
        self._captured.clear()
        self._text_graphs.clear()
        self._packed = None
        self._counted = self._counted.new_empty(self._runner.axes, 0)

    def _batch_for(self, lengths: list[int], shared: bool) -> tuple[ExtendBatch, Callable[[], None]]:
        """Return the tensors of a pass and the function that launches it."""
        runner, sequences = self._runner, 1 if len(lengths) == 1 else MAX_PROMPTS
        bucket = extend_bucket(sum(lengths))
        if bucket > (_LONGEST_CAPTURED if sequences == 1 else MAX_SKINNY_ROWS):
            runner.tune_extend(bucket, sequences)
            batch = runner.extend_batch(bucket, shared=shared) if sequences == 1 else self._packed_batch(bucket, shared)
            return batch, functools.partial(runner.extend, batch)
        key = bucket, sequences, shared
        if key not in self._captured:
            runner.tune_extend(bucket, sequences)
            batch = runner.extend_batch(bucket, sequences, shared=shared)
            extend = functools.partial(runner.extend, batch)
            self._captured[key] = batch, GraphedCall(extend, runner.llama.device, self._pool)
        return self._captured[key]

    def _packed_batch(self, rows: int, shared: bool) -> ExtendBatch:
        if self._packed is None or self._packed.rows < rows:
            self._packed = self._runner.extend_batch(max(rows, MAX_PASS_ROWS), MAX_PROMPTS)
        return replace(self._packed.first(rows), shared=shared)
