"""Runs the layers of a LLaMA: a decode step of several sequences, or an extend pass over rows of prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch

from unfuse.engines.graphed.autotune import Autotuner
from unfuse.engines.graphed.cuda_graphs import split_graph, split_points
from unfuse.engines.graphed.gemm import Gemm, GemmConfig, Scratch, bucket
from unfuse.engines.graphed.kernels.attention_common import partial_size
from unfuse.engines.graphed.kernels.decode_attention import DecodeConfig, decode_attention
from unfuse.engines.graphed.kernels.extend_attention import ExtendConfig, extend_attention
from unfuse.engines.graphed.kernels.norm_rope import begin_step, rotary_cos_sin
from unfuse.engines.graphed.kernels.prefill_attention import PackedSequences, prefill_attention, write_kv
from unfuse.engines.graphed.kernels.shared_prefix_attention import (
    MAX_SHARED_SPLITS,
    MEMBERS,
    SharedPrefixes,
    shared_prefix_attention,
)
from unfuse.engines.graphed.kernels.skinny_gemm import MAX_SKINNY_ROWS, padded_rows
from unfuse.engines.graphed.kv_cache import KVCache, new_kv_cache
from unfuse.engines.graphed.llama import Llama
from unfuse.engines.graphed.megakernel import Megakernel, megakernel_sizes
from unfuse.engines.graphed.tuned_configs import (
    TYPICAL_LENGTH,
    TunedConfigs,
    decode_configs,
    extend_configs,
    tuning_key,
)
from unfuse.engines.graphed.workspace import Activations, Workspace
from unfuse.engines.unsupported import Unsupported

_WITH_SHARED_PREFIX: Final = {2: DecodeConfig(1, 32, 1, 2), 4: DecodeConfig(1, 32, 4, 2)}
"""Attention config by bytes per number, for rows with a shared prefix, whose own positions are few: 137 us instead of
275 us on an H100, for 250 rows of 50 positions."""


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """Tensors that a decode step reads and writes. A captured step needs them at fixed addresses."""

    work: Workspace
    """Memory of the step; ``caches`` counts from its base pointer."""
    token: torch.Tensor
    """int64 ``[B]``, in: the token of each row."""
    length: torch.Tensor
    """int32 ``[B]``: cached positions; a step adds one."""
    position: torch.Tensor
    """int32 ``[B]``: rotary position of the token; a step adds one."""
    caches: torch.Tensor
    """int64 ``[B]``: offsets of the KV caches, see ``decode_attention``."""
    capacity: torch.Tensor
    """int32 ``[B]``: positions that each KV cache has room for."""
    write_position: torch.Tensor
    """int32 ``[B]``, out: position that this step's keys and values go to."""
    cosine: torch.Tensor
    sine: torch.Tensor
    logits: torch.Tensor
    """float32 ``[B, V]``, out; rounded to the model's dtype, as the model's own logits are."""

    @property
    def rows(self) -> int:
        """B."""
        return len(self.token)

    def first(self, rows: int) -> DecodeBatch:
        """Return views of the first rows."""
        tensors = {name: getattr(self, name)[:rows] for name in _TENSORS}
        return dataclasses.replace(self, **tensors)


_TENSORS: Final = tuple(field.name for field in dataclasses.fields(DecodeBatch) if field.name != "work")


@dataclass(frozen=True, slots=True)
class ExtendBatch:
    """Tensors of an extend pass: rows of one or several prompts, packed one after the other."""

    work: Workspace
    embeds: torch.Tensor
    """``[R, H]``"""
    positions: torch.Tensor
    """int32 ``[A, R]``"""
    metadata: torch.Tensor
    """int64 ``[8, S]``, see ``PackedSequences``."""
    logits: torch.Tensor
    """float32 ``[S, V]``, after the last row of each prompt."""
    shared: bool = False
    """Whether the prefix of any prompt is in another prompt's KV cache."""

    @property
    def rows(self) -> int:
        """R."""
        return len(self.embeds)

    @property
    def sequences(self) -> int:
        """S."""
        return self.metadata.shape[1]

    def first(self, rows: int) -> ExtendBatch:
        """Return views of the first rows."""
        return dataclasses.replace(self, embeds=self.embeds[:rows], positions=self.positions[:, :rows])


@dataclass(frozen=True, slots=True)
class _Gemms:
    """Launches the matrix products of one pass."""

    configs: Mapping[str, GemmConfig]
    """By product; those without a config are cuBLAS's."""
    memory: Activations
    scratch: Scratch
    rows: int

    def __call__(self, gemm: Gemm, layer: int, out: torch.Tensor, x: torch.Tensor) -> None:
        if (config := self.configs.get(gemm.name)) is not None:
            gemm(config, layer, out, x, self.scratch, rows=self.rows)
        else:
            gemm.with_library(layer, out, x, self.memory.normed, self.memory.wide, rows=self.rows)


class ModelRunner:
    """Launches the kernels of one LLaMA. Callers capture graphs, choose tokens and schedule requests."""

    def __init__(self, llama: Llama, tuner: Autotuner):
        self.llama = llama
        self.axes = int(llama.axes.max()) + 1
        """Rotary axes: 1 for text, 3 under M-RoPE."""
        self._tuner = tuner
        layers = llama.layers
        self._qkv = Gemm(
            "qkv", [x.qkv for x in layers], norm_weights=[x.input_norm_weight for x in layers], eps=llama.eps
        )
        self._out = Gemm("out", [x.out for x in layers], add=True)
        self._gate_up = Gemm(
            "gate_up",
            [x.gate_up for x in layers],
            norm_weights=[x.post_norm_weight for x in layers],
            eps=llama.eps,
            gated=True,
        )
        self._down = Gemm("down", [x.down for x in layers], add=True)
        # The largest first, see ``TunedConfigs.for_rows``.
        self._gemms = (self._gate_up, self._qkv, self._down, self._out)
        self._head = Gemm("head", [llama.head], norm_weights=[llama.final_norm_weight], eps=llama.eps)
        self._decode_configs: dict[int, TunedConfigs[DecodeConfig]] = {}
        self._extend_configs: dict[int, TunedConfigs[ExtendConfig]] = {}
        self._heads: dict[int, GemmConfig] = {}
        self._work: Workspace | None = None
        self.notes: tuple[str, ...] = ()
        """Reason why a decode step of one sequence is not one kernel on a device that supports it."""
        self.megakernel: Megakernel | None = None
        """Decode step of one sequence as one kernel, where device, dtype and sizes allow it."""
        if (sizes := megakernel_sizes(llama)) is not None:
            try:
                self.megakernel = Megakernel(llama, sizes)
            except Unsupported as reason:
                self.notes = (f"a decode step is many kernels, not one: {reason}",)

    @property
    def work(self) -> Workspace:
        """Memory of new batches."""
        if self._work is None:
            self._work = Workspace.of(self.llama, self.megakernel)
        return self._work

    def decode_batch(self, rows: int) -> DecodeBatch:
        """Return the tensors of a decode step; all rows are padding at first."""
        half, work = self.llama.heads.head_dim // 2, self.work
        return DecodeBatch(
            work=work,
            token=self._zeros(rows, dtype=torch.int64),
            length=self._zeros(rows, dtype=torch.int32),
            position=self._zeros(rows, dtype=torch.int32),
            caches=self._zeros(rows, dtype=torch.int64).fill_(work.offset(work.dummy_cache)),
            capacity=self._zeros(rows, dtype=torch.int32).fill_(work.dummy_cache.capacity),
            write_position=self._zeros(rows, dtype=torch.int32),
            cosine=self._zeros(rows, half),
            sine=self._zeros(rows, half),
            logits=self._zeros(rows, self.llama.head.weight.shape[0], dtype=torch.float32),
        )

    def extend_batch(self, rows: int, sequences: int = 1, *, shared: bool = False) -> ExtendBatch:
        """Return the tensors of an extend pass over ``sequences`` prompts, a power of two."""
        work = self.work
        dummy_cache = [work.offset(work.dummy_cache), work.dummy_cache.capacity, 0, 1, 0, 0, 1, 0]
        metadata = torch.tensor(dummy_cache, device=self.llama.device)[:, None].repeat(1, sequences)
        metadata[3:5, 1:] = torch.tensor([[0], [1]])
        return ExtendBatch(
            work=work,
            embeds=self._zeros(rows, self.llama.hidden),
            positions=self._zeros(self.axes, rows, dtype=torch.int32),
            metadata=metadata,
            logits=self._zeros(sequences, self.llama.head.weight.shape[0], dtype=torch.float32),
            shared=shared,
        )

    def shared_prefixes(self, rows: int) -> SharedPrefixes:
        """Return the tensors for prefixes that rows of a decode step share; none is shared at first."""
        heads, groups = self.llama.heads, rows
        return SharedPrefixes(
            members=self._zeros(groups, MEMBERS, dtype=torch.int32).fill_(-1),
            caches=self._zeros(groups, dtype=torch.int64),
            capacity=self._zeros(groups, dtype=torch.int32).fill_(1),
            length=self._zeros(groups, dtype=torch.int32),
            in_group=self._zeros(rows, dtype=torch.int32),
            partial=self._zeros(partial_size(heads, rows, MAX_SHARED_SPLITS), dtype=torch.float32),
        )

    def tune_decode(self, rows: int) -> None:
        """Choose the kernel configs of a decode step of so many rows."""
        size, heads = bucket(rows), self.llama.heads
        self._tune_head(size)
        if size in self._decode_configs or (size == 1 and self.megakernel is not None):
            return
        # With more rows cuBLAS computes the products. Attention needs no measurement either: enough thread blocks run
        # without splitting the positions of a head.
        gemms = self._gemms if size <= MAX_SKINNY_ROWS else ()
        configs = decode_configs(heads, size, self.llama.dtype)
        tuned = self._decode_configs[size] = TunedConfigs.for_rows(size, configs, gemms, self.work.scratch)
        if not gemms:
            return
        batch, typical = self.decode_batch(size), self._typical(1)
        batch.caches.fill_(batch.work.offset(typical))
        batch.capacity.fill_(typical.capacity)
        batch.length.fill_(typical.capacity - 1)
        tuned.choose(self._tuner, self._key("decode", size), lambda: self.decode(batch))

    def tune_extend(self, rows: int, sequences: int) -> None:
        """Choose the kernel configs of an extend pass."""
        size, heads = bucket(rows), self.llama.heads
        self._tune_head(bucket(sequences))
        if size in self._extend_configs or size > MAX_SKINNY_ROWS:
            return
        self._tune_head(1)
        scratch = self.work.scratch
        configs = extend_configs(heads, size, scratch)
        tuned = self._extend_configs[size] = TunedConfigs.for_rows(size, configs, self._gemms, scratch)
        batch, typical = self.extend_batch(size), self._typical(size)
        batch.metadata[:4, 0] = torch.tensor(
            [batch.work.offset(typical), typical.capacity, typical.capacity - size, size], device=batch.metadata.device
        )
        tuned.choose(self._tuner, self._key("extend", size), lambda: self.extend(batch))

    def _key(self, kind: str, rows: int) -> Callable[[str], str]:
        return tuning_key(len(self.llama.layers), self.llama.heads, kind, rows, self._gemms)

    def _typical(self, more: int) -> KVCache:
        """Return a KV cache of typical length for timing; the dummy cache if nothing is timed."""
        return (
            new_kv_cache(self.llama, TYPICAL_LENGTH + more)
            if self.llama.device.type == "cuda"
            else self.work.dummy_cache
        )

    def _tune_head(self, size: int) -> None:
        """Tune the LM head alone: its weights exceed the L2 cache, so its neighbours do not matter."""
        if size in self._heads or size > MAX_SKINNY_ROWS:
            return
        logits, work = self._zeros(size, len(self.llama.head.weight), dtype=torch.float32), self.work

        def run(config: GemmConfig) -> None:
            self._head(config, 0, logits, work.skinny.x, work.scratch, rows=size)

        self._heads[size] = self._tuner.choose(self._head.key(size), self._head.candidates(work.scratch, size), run)

    def decode(self, batch: DecodeBatch, shared: SharedPrefixes | None = None) -> None:
        """Run a decode step: write the tokens' keys and values into the KV caches, and the logits into the batch.

        Args:
            batch: the rows.
            shared: prefixes that several rows share; not for a single row.
        """
        llama, rows, work = self.llama, batch.rows, batch.work
        memory, scratch, base_pointer = work.activations(rows), work.scratch, work.base_pointer
        megakernel_work = work.megakernel_work if rows == 1 else None
        begin_step(
            megakernel_work.x if megakernel_work else memory.x, batch.cosine, batch.sine, batch.write_position,
            batch.token, batch.length, batch.position, batch.capacity,
            llama.embedding, llama.inv_freq, llama.axes, llama.rotary_scaling, fragments=megakernel_work is not None,
        )  # fmt: skip
        if megakernel_work:
            assert self.megakernel is not None
            self.megakernel(batch, megakernel_work, base_pointer)
            return
        size = bucket(rows)
        tuned = self._decode_configs[size]
        configs = {**tuned.gemms, self._head.name: self._heads[size]} if size in self._heads else tuned.gemms
        gemms = _Gemms(configs, memory, scratch, rows)
        config = _WITH_SHARED_PREFIX[llama.dtype.itemsize] if shared is not None else tuned.attention
        for index, layer in enumerate(llama.layers):
            gemms(self._qkv, index, memory.heads, memory.x)
            if shared is not None:
                shared_prefix_attention(
                    shared, memory.heads, base_pointer, (batch.cosine, batch.sine), llama.heads, index,
                    norm_weights=layer.head_norm_weights, eps=llama.eps, scale=llama.scale,
                )  # fmt: skip
            decode_attention(
                memory.attended, memory.heads, base_pointer, batch.caches, batch.capacity, batch.write_position,
                (batch.cosine, batch.sine), llama.heads, index,
                config=config, partial=scratch.partial, semaphores=scratch.semaphores,
                norm_weights=layer.head_norm_weights, eps=llama.eps, scale=llama.scale, shared=shared,
            )  # fmt: skip
            self._finish_layer(gemms, index)
        gemms(self._head, 0, batch.logits, memory.x)

    def extend(self, batch: ExtendBatch) -> None:
        """Run an extend pass: write the rows' keys and values into the KV caches, and each prompt's logits.

        Products of up to 64 rows are skinny GEMMs; those of more rows are cuBLAS's.
        """
        llama, rows, heads, work = self.llama, batch.rows, self.llama.heads, batch.work
        sequences = PackedSequences(work.base_pointer, batch.metadata, batch.shared)
        memory, scratch = work.activations(rows), work.scratch
        cos_sin = memory.x.new_empty(rows, heads.head_dim // 2), memory.x.new_empty(rows, heads.head_dim // 2)
        tuned = self._extend_configs.get(rows)
        gemms = _Gemms(tuned.gemms if tuned is not None else {}, memory, scratch, rows)
        splits = split_points(len(llama.layers))
        memory.x[:rows].copy_(batch.embeds)
        rotary_cos_sin(*cos_sin, batch.positions, llama.inv_freq, llama.axes, llama.rotary_scaling)
        for index, layer in enumerate(llama.layers):
            if index in splits:
                split_graph()
            gemms(self._qkv, index, memory.heads, memory.x)
            qkv, attended = memory.heads[:rows], memory.attended[:rows]
            if tuned is not None:
                config = dataclasses.replace(tuned.attention, splits=max(1, tuned.attention.splits // batch.sequences))
                extend_attention(
                    attended, qkv, sequences, cos_sin, heads, index,
                    norm_weights=layer.head_norm_weights, eps=llama.eps, scale=llama.scale,
                    config=config, partial=scratch.partial, semaphores=scratch.semaphores,
                )  # fmt: skip
            else:
                write_kv(qkv, sequences, cos_sin, heads, index, norm_weights=layer.head_norm_weights, eps=llama.eps)
                prefill_attention(attended, qkv, sequences, heads, index, scale=llama.scale)
            self._finish_layer(gemms, index)
        last = (batch.metadata[3] + batch.metadata[4] - 1).clamp(min=0)
        head_config = self._heads[bucket(batch.sequences)]
        self._head(head_config, 0, batch.logits, memory.x.index_select(0, last), scratch, rows=batch.sequences)

    def _finish_layer(self, gemms: _Gemms, index: int) -> None:
        """Launch the products after attention: output projection and MLP."""
        memory = gemms.memory
        gemms(self._out, index, memory.x, memory.attended)
        gemms(self._gate_up, index, memory.inner, memory.x)
        gemms(self._down, index, memory.x, memory.inner)

    def close(self) -> None:
        """Release the workspace; a running step keeps its own."""
        self._work = None

    def _zeros(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype or self.llama.dtype, device=self.llama.device)


def extend_bucket(rows: int) -> int:
    """Return the rows of the pass that serves so many rows of prompts.

    cuBLAS is faster for four rows less than whole tiles: by 4 % at 636 instead of 640 rows on an H100.
    """
    if rows <= MAX_SKINNY_ROWS:
        return padded_rows(rows)
    whole = -(-rows // MAX_SKINNY_ROWS) * MAX_SKINNY_ROWS
    return whole - 4 if rows <= whole - 4 else whole
