"""Decoding of one answer by passes over drafted tokens, each pass one CUDA graph.

The logits and the KV cache have the bits of one-token steps, so greedy answers are equal.

    receive the draft -> embed its tokens -> persistent kernel -> choose after each token -> accept

A pass is launched before the tokens of the pass ahead are read. While the device starts on it, the host drafts from
these tokens and writes the draft into pinned memory; the pass waits for it there.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from unfuse.compiled import compiled
from unfuse.engines.graphed.cuda_graphs import GraphedCall, outside_inference_mode, set_device
from unfuse.engines.graphed.kernels.argmax import argmax
from unfuse.engines.graphed.kernels.speculation import (
    FINISHED,
    POSITION,
    RESULTS,
    STATE_SIZE,
    accept_tokens,
    begin_pass,
    receive_draft,
)
from unfuse.engines.graphed.kv_cache import KVCache
from unfuse.engines.graphed.llama import Llama
from unfuse.engines.graphed.megakernel import MAX_TOKENS, Megakernel, MegakernelWorkspace
from unfuse.engines.sampling import TokenChooser, require_valid
from unfuse.finite import INVALID_TOKEN
from unfuse.speculation.drafter import Draft, Drafts
from unfuse.stages import Prefilled, Sampling

_GROWTH: Final = 512
"""Positions by which a full KV cache grows."""
_MAX_FORCED: Final = 4096
_INVALID_WORD: Final = INVALID_TOKEN & 0xFFFFFFFF
_LOOKS: Final = 10_000_000
"""Reads of pinned memory, of some nanoseconds each, after which the host waits for the end of a pass instead."""


@compiled
def _write_draft(words: Any, token_ids: Any, number: int, vocabulary: int) -> None:
    """Write a draft as ``receive_draft`` reads it, up to the first id that has no embedding."""
    count = 0
    for token in token_ids[: len(words) - 1]:
        if token < 0 or token >= vocabulary:
            break
        count += 1
        words[count] = number << 32 | token
    for at in range(count + 1, len(words)):
        words[at] = number << 32
    words[0] = number << 32 | count


@compiled
def _wait_for_words(words: Any, number: int, looks: Any, limit: int) -> bool:
    """Wait until every word has the number of the pass; return False if that takes too many looks."""
    for _ in range(limit):
        looks[0] += 1  # a write that may change the words, so that the compiler reads them again
        missing = False
        for word in words:
            missing |= word >> 32 != number
        if not missing:
            return True
    return False


class Event(Protocol):
    """Moment when the device has done the work that was launched before the event."""

    def synchronize(self) -> None:
        """Wait for it."""


@dataclass(frozen=True, slots=True)
class PassTensors:
    """Tensors of a captured pass, T = ``MAX_TOKENS`` rows each, at fixed addresses."""

    tokens: torch.Tensor
    """int64 ``[T]``: the last token of the answer, and the drafted ones after it."""
    chosen: torch.Tensor
    """int64 ``[T]``: the model's choice after each of them."""
    state: torch.Tensor
    """int32 ``[STATE_SIZE]``, see ``kernels.speculation``."""
    caches: torch.Tensor
    capacity: torch.Tensor
    write_position: torch.Tensor
    cosine: torch.Tensor
    sine: torch.Tensor
    logits: torch.Tensor
    """float32 ``[T, V]``."""
    eos_masked: torch.Tensor
    forced: torch.Tensor
    num_forced: torch.Tensor
    draft: torch.Tensor
    """int64 ``[T]``, pinned: see ``receive_draft``."""
    results: torch.Tensor
    """int64 ``[RESULTS, T + 1]``, pinned: see ``accept_tokens``."""

    @classmethod
    def of_zeros(cls, llama: Llama) -> PassTensors:
        """Allocate them; the answer has ended at first, so a pass does nothing."""
        device = llama.device

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        half = llama.heads.head_dim // 2
        tensors = cls(
            tokens=zeros(MAX_TOKENS),
            chosen=zeros(MAX_TOKENS),
            state=zeros(STATE_SIZE, dtype=torch.int32),
            caches=zeros(1),
            capacity=zeros(1, dtype=torch.int32),
            write_position=zeros(1, dtype=torch.int32),
            cosine=zeros(MAX_TOKENS, half, dtype=llama.dtype),
            sine=zeros(MAX_TOKENS, half, dtype=llama.dtype),
            logits=zeros(MAX_TOKENS, len(llama.head.weight), dtype=torch.float32),
            eos_masked=zeros(MAX_TOKENS, dtype=torch.bool),
            forced=zeros(_MAX_FORCED),
            num_forced=zeros(1, dtype=torch.int32),
            draft=torch.zeros(MAX_TOKENS, dtype=torch.int64, pin_memory=device.type == "cuda"),
            results=torch.zeros(RESULTS, MAX_TOKENS + 1, dtype=torch.int64, pin_memory=device.type == "cuda"),
        )
        tensors.state[FINISHED] = 1
        return tensors


@dataclass(frozen=True, slots=True)
class PassResult:
    """Outcome of a pass."""

    tokens: list[int]
    """New tokens: the accepted ones and one more."""
    drafted: int
    finished: bool


class SpeculativeStep:
    """A captured pass, and the answer that the state in its tensors belongs to."""

    def __init__(
        self,
        llama: Llama,
        megakernel: Megakernel,
        base_pointer: torch.Tensor,
        end_ids: torch.Tensor,
        chooser: TokenChooser | None,
        capture: Callable[[Callable[[], None]], GraphedCall],
    ):
        """Capture the pass.

        Args:
            llama: the weights.
            megakernel: computes the logits after several tokens.
            base_pointer: base of the cache offsets.
            end_ids: int64, on the device: tokens that end an answer.
            chooser: samples the tokens; None for greedy decoding.
            capture: makes a graph of a function.
        """
        self.tensors = tensors = PassTensors.of_zeros(llama)
        self.base_pointer = base_pointer
        self.chooser = chooser
        self.owner: weakref.ref[SpeculativeRun] | None = None
        """Weak, so that a finished answer and its KV cache are freed."""
        self.number = 1
        """Number of the next pass that the host reads."""
        self.draft_words: NDArray[np.int64] = tensors.draft.numpy()
        self.result_words: NDArray[np.int64] = tensors.results.numpy()
        self.looks: NDArray[np.int64] = np.zeros(1, np.int64)
        self.device = llama.device
        self.vocabulary = len(llama.embedding)
        memory: MegakernelWorkspace = megakernel.memory()
        steps = torch.arange(1, MAX_TOKENS + 1, device=llama.device)

        def run() -> None:
            receive_draft(
                tensors.draft, tensors.tokens, memory.count, tensors.write_position, tensors.state, tensors.capacity
            )
            begin_pass(
                memory.x, tensors.cosine, tensors.sine, tensors.tokens, memory.count, tensors.state,
                llama.embedding, llama.inv_freq, llama.axes, llama.rotary_scaling,
            )  # fmt: skip
            megakernel(tensors, memory, base_pointer)
            if chooser is None:
                argmax(tensors.chosen, tensors.logits, end_ids, tensors.eos_masked)
            else:
                tensors.chosen.copy_(chooser(tensors.logits, tensors.state[POSITION] + steps))
            accept_tokens(
                tensors.tokens, tensors.chosen, memory.count, tensors.state, end_ids, tensors.forced,
                tensors.num_forced, tensors.results,
            )  # fmt: skip

        # Compile what the host runs while the device waits.
        _write_draft(self.draft_words, np.zeros(0, np.int64), 0, self.vocabulary)
        _wait_for_words(self.result_words[0], 0, self.looks, 1)
        self._run = capture(run)

    @outside_inference_mode()
    def upload(
        self, state: Sequence[int], last_token: int, cache: KVCache, sampling: Sampling, forced: Sequence[int]
    ) -> None:
        """Copy an answer's state to the tensors that the next pass reads, once the passes before have run.

        Args:
            state: ``[STATE_SIZE]``, see ``kernels.speculation``.
            last_token: last token of the answer.
            cache: its KV cache.
            sampling: how its tokens are chosen.
            forced: tokens after the first one that take the place of the model's choice.
        """
        set_device(self.device)
        if self.chooser is not None:
            self.chooser.set(sampling)
        tensors = self.tensors
        tensors.state.copy_(torch.tensor(state, dtype=torch.int32))
        tensors.tokens[:1].copy_(torch.tensor([last_token]))
        tensors.caches.copy_(torch.tensor([cache.offset(self.base_pointer)]))
        tensors.capacity.copy_(torch.tensor([cache.capacity], dtype=torch.int32))
        tensors.eos_masked.fill_(sampling.ignore_eos)
        tensors.num_forced.fill_(len(forced))
        tensors.forced[: len(forced)].copy_(torch.tensor(forced, dtype=torch.int64))

    @outside_inference_mode()
    def launch(self) -> Event:
        """Start a pass, even before its draft exists; return an event that occurs when the pass has run."""
        set_device(self.device)
        self._run()
        event = torch.cuda.Event()
        event.record()
        return event


class SpeculativeRun:
    """One answer that is being decoded by passes over drafted tokens.

    Several runs may share a captured pass: a run that takes the pass over collects the result that the run before it
    has not read, and uploads its own state.
    """

    def __init__(self, step: SpeculativeStep, prefilled: Prefilled, max_new_tokens: int, drafts: Drafts):
        self._step, self._prefilled, self._drafts = step, prefilled, drafts
        self._max_new_tokens = max_new_tokens
        self._last, self._read = prefilled.token_id, 1
        """The last token that the host has read, and how many it has read, the first one included."""
        self._in_flight: deque[Event] = deque()
        self._waiting = False
        """Whether the last pass that was launched waits for its draft."""
        self._collected: PassResult | None = None
        self._forced: Sequence[int] = ()

    def force(self, token_ids: Sequence[int]) -> None:
        """Let tokens take the place of the model's choice: the first one and those after it, ``_MAX_FORCED`` at most.

        Call it before the first pass.
        """
        self._last, self._forced = token_ids[0], token_ids[1:]

    def tokens(self) -> Iterator[int]:
        """Yield the tokens after the first token, up to and with an end token; call it once only.

        The first token must not be an end token.
        """
        if self._max_new_tokens <= self._read:
            return
        draft = self._drafts.draft([self._last])
        try:
            while True:
                if not self._in_flight and self._collected is None:
                    self._upload()
                    self._submit()
                    self._publish(draft)
                more = self._max_new_tokens - self._read > 1
                if ahead := more and self._collected is None and self._has_room(2):
                    self._submit()
                result = self._collect()
                if ahead and self._drafts.pauses:
                    # Not before: the pass ahead has one place for its draft, and must have read the draft before.
                    self._publish(())
                if result.finished:
                    # The pass that was launched ahead sees it too, and does nothing.
                    self._in_flight.clear()
                    self._waiting = False
                else:
                    draft = self._drafts.draft(result.tokens)
                    if ahead and self._waiting:
                        self._publish(draft)
                self._drafts.record(result.drafted, len(result.tokens) - 1)
                yield from (require_valid(token, "decode") for token in result.tokens)
                if result.finished:
                    return
        finally:
            if self._waiting:
                self._publish(())

    def scores(self) -> Iterator[torch.Tensor]:
        """Yield the logits ``[n, V]`` that each pass chose its n new tokens from. The passes do not overlap."""
        draft = self._drafts.draft([self._last])
        finished = self._max_new_tokens <= self._read
        while not finished:
            self._upload()
            self._submit()
            self._publish(draft)
            result = self._collect()
            finished = result.finished
            if not finished:
                draft = self._drafts.draft(result.tokens)
            self._drafts.record(result.drafted, len(result.tokens) - 1)
            yield self._step.tensors.logits[: len(result.tokens)].clone()

    def _submit(self) -> None:
        self._waiting = True
        self._in_flight.append(self._step.launch())

    def _publish(self, draft: Draft) -> None:
        """Give the launched pass its draft."""
        step = self._step
        number = step.number + len(self._in_flight) - 1
        _write_draft(step.draft_words, np.asarray(draft, np.int64), number, step.vocabulary)
        self._waiting = False

    def collect(self) -> None:
        """Read the result of the pass in flight, for another run takes the captured pass over."""
        if self._in_flight:
            self._collected = self._wait()
            self._in_flight.clear()

    def _collect(self) -> PassResult:
        result, self._collected = self._collected or self._wait(), None
        return result

    def _wait(self) -> PassResult:
        step = self._step
        words = step.result_words[step.number % RESULTS]
        # The words arrive before the end of the pass is reported, and the next pass waits for a draft.
        arrived = step.device.type == "cuda" and _wait_for_words(words, step.number, step.looks, _LOOKS)
        if not arrived:
            self._in_flight[0].synchronize()
        # An interrupt while it waits must leave the number of the pass as it is.
        self._in_flight.popleft()
        step.number += 1
        row = (words & 0xFFFFFFFF).tolist()
        head = row[0]
        tokens = [INVALID_TOKEN if word == _INVALID_WORD else word for word in row[1 : 1 + (head & 0xFF)]]
        self._last = tokens[-1]
        self._read += len(tokens)
        return PassResult(tokens, drafted=(head >> 8 & 0xFF) - 1, finished=bool(head >> 16))

    def _has_room(self, passes: int) -> bool:
        """Return whether the KV cache has room for so many passes after the tokens that the host has read."""
        needed = min(passes * MAX_TOKENS, self._max_new_tokens - self._read)
        return self._length + needed <= self._cache.capacity

    @property
    def _length(self) -> int:
        """Positions that are cached once the host has read all tokens; those of the last token are not."""
        return self._prefilled.prompt_tokens + self._read - 1

    @property
    def _cache(self) -> KVCache:
        cache: KVCache = self._prefilled.state.cache
        return cache

    @outside_inference_mode()
    def _upload(self) -> None:
        """Take the captured pass over."""
        step = self._step
        owner = step.owner() if step.owner is not None else None
        if owner is not self:
            if owner is not None:
                owner.collect()
            step.owner = weakref.ref(self)
            # A pass with an unread result may have used the next numbers.
            step.number += RESULTS
        if not self._has_room(1):
            self._cache.reserve(self._length + _GROWTH, self._length)
        left = self._max_new_tokens - self._read
        position = self._prefilled.state.position + self._read - 1
        state = [self._length, position, left, step.number, 0, self._read - 1, 0, 0]
        step.upload(state, self._last, self._cache, self._prefilled.sampling, self._forced)
