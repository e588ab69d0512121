"""Continuous batching on captured decode steps (Orca: Yu et al., OSDI 2022).

Waiting prompts are prefilled several at a time; a request leaves the batch as soon as its answer ends. The host reads
the tokens of a step while the device computes the next step. A request is therefore computed once more after an end
token, and the extra token is dropped; a request that reaches its length is not computed again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from unfuse.engines.batching import Request, TokenOutput, failed, input_error
from unfuse.engines.graphed.cuda_graphs import outside_inference_mode, set_device
from unfuse.engines.graphed.in_flight import InFlightStep, RunningRequest, max_positions, seconds_between
from unfuse.engines.graphed.kernels.argmax import argmax
from unfuse.engines.graphed.model_runner import ModelRunner
from unfuse.engines.graphed.prefill import MAX_PASS_ROWS, MAX_PROMPTS, PrefillRunner, PromptRows
from unfuse.engines.graphed.prefix_cache import CacheEntry, KVCachePool, PrefixHit
from unfuse.engines.graphed.slots import Slots
from unfuse.engines.graphed.workspace import MAX_BATCH
from unfuse.engines.sampling import TokenChooser
from unfuse.engines.sequential import SequentialBatch
from unfuse.errors import DeviceError, NonFiniteError
from unfuse.finite import INVALID_TOKEN
from unfuse.stages import StopReason

_Joining = tuple[RunningRequest, PromptRows]
"""A request that was given a KV cache, and the rows of its prompt that must be computed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchSettings:
    """Limits of a continuous batch."""

    capacity: int | None
    """Requests that run at the same time; None for as many as a step takes."""
    interleave: bool
    """Run at most one prefill pass before each decode step."""
    max_cache_bytes: int
    """For keys and values."""


class GraphedBatch:
    """Implements ``ContinuousBatch``. All work is on the current stream."""

    def __init__(
        self,
        runner: ModelRunner,
        prefill: PrefillRunner,
        slots: Callable[[GraphedBatch], Slots],
        fallback: SequentialBatch,
        end_ids: torch.Tensor,
        settings: BatchSettings,
    ):
        """Allocate nothing yet.

        Args:
            runner: runs decode steps.
            prefill: runs prefill passes.
            slots: returns slots that belong to this batch until it is closed.
            fallback: runs the requests that need the model's own forward.
            end_ids: int64, on the device: tokens that end an answer.
            settings: limits.
        """
        self.capacity = min(settings.capacity or MAX_BATCH, MAX_BATCH)
        self._interleave = settings.interleave
        self._runner, self._prefill = runner, prefill
        self._find_slots = slots
        self._slots: Slots | None = None
        self._fallback = fallback
        self._end_ids = end_ids
        self._ends = frozenset(end_ids.tolist())
        self._cache_pool = KVCachePool(runner.llama, settings.max_cache_bytes)
        self._waiting: deque[Request] = deque()
        self._running: dict[str, RunningRequest] = {}
        self._in_flight: deque[InFlightStep] = deque()
        self._busy = {"prefill": 0.0, "decode": 0.0}
        self._num_first = 0
        """Requests that were prefilled since the last decode step; the count of used ``first_tokens``."""

    @property
    def unfinished(self) -> int:
        """See ``ContinuousBatch.unfinished``."""
        return len(self._waiting) + len(self._running) + self._fallback.unfinished

    @property
    def busy_s(self) -> Mapping[str, float]:
        """Seconds of the device; see ``ContinuousBatch.busy_s``."""
        return {stage: seconds + self._fallback.busy_s[stage] for stage, seconds in self._busy.items()}

    @outside_inference_mode()
    def prepare(self) -> None:
        """See ``ContinuousBatch.prepare``."""
        set_device(self._runner.llama.device)
        self._own_slots().prepare(self.capacity)

    def add(self, requests: Sequence[Request]) -> None:
        """See ``ContinuousBatch.add``.

        Raises:
            DeviceError: the keys and values of one request exceed the device's memory.
        """
        for request in requests:
            if not self._cache_pool.fits(max_positions(request)):
                raise DeviceError(
                    f"request {request.request_id}",
                    found=f"a prompt and an answer of up to {max_positions(request)} positions",
                    expected="as many as the device's memory holds beside the model",
                    fix="ask for fewer new tokens",
                )
        for request in requests:
            if self._prefill.supports(request.prompt):
                self._waiting.append(request)
            else:
                self._fallback.add([request])

    @outside_inference_mode()
    def step(self) -> list[TokenOutput]:
        """See ``ContinuousBatch.step``."""
        set_device(self._runner.llama.device)
        self._admit()
        submitted = self._submit_decode()
        outputs = list(self._fallback.step()) if self._fallback.unfinished else []
        while len(self._in_flight) > submitted:
            outputs.extend(self._retire(self._in_flight.popleft()))
        return outputs

    def abort(self, request_id: str) -> None:
        """See ``ContinuousBatch.abort``."""
        self._fallback.abort(request_id)
        self._waiting = deque(request for request in self._waiting if request.request_id != request_id)
        if request_id in self._running:
            self._finish(self._running[request_id])

    def close(self) -> None:
        """See ``ContinuousBatch.close``."""
        self._fallback.close()
        self._waiting.clear()
        self._running.clear()
        self._in_flight.clear()
        self._cache_pool.close()
        if self._slots is not None:
            self._slots.clear()
            self._slots.owner = None
            self._slots = None

    def _admit(self) -> None:
        """Prefill waiting requests, in order, as long as there are free slots and memory."""
        self._num_first = 0
        joining: list[_Joining] = []
        while self._waiting and len(self._running) < self.capacity:
            request = self._waiting[0]
            hit = self._find_prefix(request)
            rows = request.prompt.length - (hit.positions if hit else 0)
            full = len(joining) == MAX_PROMPTS or sum(len(each.embeds) for _, each in joining) + rows > MAX_PASS_ROWS
            # A prefix must have been computed before another prompt can continue it.
            unready = hit is not None and any(each.entry is hit.entry for each, _ in joining)
            if joining and (full or unready):
                self._run_prefill(joining)
                joining = []
                if self._interleave:
                    break
            entry = self._allocate(request, hit)
            if entry is None:
                break
            self._waiting.popleft()
            joining.append(self._join(request, entry))
        if joining:
            self._run_prefill(joining)

    def _find_prefix(self, request: Request) -> PrefixHit | None:
        prompt = request.prompt
        keys = prompt.token_keys if request.reuse else ()
        # At least one position must be computed: its logits give the first token.
        return self._cache_pool.find(keys, prompt.features_digest, prompt.length - 1)

    def _allocate(self, request: Request, hit: PrefixHit | None) -> CacheEntry | None:
        keys, digest = request.prompt.token_keys if request.reuse else (), request.prompt.features_digest
        entry = self._cache_pool.allocate(max_positions(request), keys, digest, hit)
        if entry is None and hit is not None and not self._running:
            # No running request will free memory, so the shared prefix must be evicted.
            entry = self._cache_pool.allocate(max_positions(request), keys, digest, None)
        return entry

    def _join(self, request: Request, entry: CacheEntry) -> _Joining:
        embeds, positions, following = self._prefill.rows(request.prompt)
        chooser = None
        if request.sampling.temperature > 0:
            chooser = TokenChooser(request.sampling, self._end_ids, embeds.device)
        running = RunningRequest(request, entry, following, chooser)
        self._running[request.request_id] = running
        reused = entry.prefix_length
        prefix = entry.prefix_entry.cache if entry.prefix_entry else None
        return running, PromptRows(embeds[reused:], positions[:, reused:], entry.cache, prefix, reused)

    def _own_slots(self) -> Slots:
        if self._slots is None:
            self._slots = self._find_slots(self)
        return self._slots

    def _run_prefill(self, joining: list[_Joining]) -> None:
        start, slots = self._now(), self._own_slots()
        requests = [each for each, _ in joining]
        logits = self._prefill([rows for _, rows in joining])
        tokens = slots.first_tokens[self._num_first : self._num_first + len(requests)]
        eos_masked = slots.uploaded(torch.tensor([each.request.sampling.ignore_eos for each in requests]))
        argmax(tokens, logits, self._end_ids, eos_masked)
        for index, each in enumerate(requests):
            each.slot = MAX_BATCH + self._num_first + index
            if each.chooser is not None:
                tokens[index] = each.chooser(logits[index], each.position)
        self._num_first += len(requests)
        self._read_later(requests, tokens, "prefill", start)

    def _submit_decode(self) -> int:
        """Launch a decode step of all unfinished requests; return the number of steps launched, 0 or 1."""
        requests = [each for each in self._running.values() if each.unfinished]
        if not requests:
            if self._slots is not None:
                self._slots.clear()
            return 0
        start, slots = self._now(), self._own_slots()
        slots.step(requests)
        for slot, each in enumerate(requests):
            each.submitted += 1
            each.slot = slot
            if each.chooser is not None:
                slots.batch.token[slot] = each.chooser(slots.batch.logits[slot], slots.batch.position[slot])
        self._read_later(requests, slots.batch.token[: len(requests)], "decode", start)
        return 1

    def _read_later(
        self, requests: list[RunningRequest], tokens: torch.Tensor, stage: str, start: torch.cuda.Event | float
    ) -> None:
        on_host = torch.empty(len(tokens), dtype=tokens.dtype, pin_memory=tokens.is_cuda)
        on_host.copy_(tokens, non_blocking=True)
        self._in_flight.append(InFlightStep(list(requests), on_host, stage, start, self._now()))

    def _retire(self, step: InFlightStep) -> Iterator[TokenOutput]:
        self._busy[step.stage] += seconds_between(step.start, step.end)
        for running, token in zip(step.requests, step.tokens.tolist(), strict=True):
            if running.ended:
                continue
            if (fault := _fault(running, token, step.stage)) is not None:
                self._finish(running)
                yield failed(running.request, fault)
                continue
            running.received += 1
            finished: StopReason | None = None
            if token in self._ends:
                finished = "eos"
            elif running.received == running.request.max_new_tokens:
                finished = "length"
            if finished is not None:
                self._finish(running)
            yield TokenOutput(
                request_id=running.request.request_id,
                token_id=token,
                finished=finished,
                reused_prefix_tokens=running.entry.prefix_length,
            )

    def _finish(self, running: RunningRequest) -> None:
        """Remove the request from the batch and release its KV cache, so that a later question may reuse it.

        No slot is freed here: the next decode step assigns slots to the remaining requests from 0 on.
        """
        running.ended = True
        del self._running[running.request.request_id]
        # A decode step in flight may still write to this cache. It writes behind the prompt, and only positions of the
        # prompt are reused; a new owner of the buffer writes later, because all work is on one stream.
        self._cache_pool.release(running.entry)

    def _now(self) -> torch.cuda.Event | float:
        if self._runner.llama.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _fault(running: RunningRequest, token: int, stage: str) -> NonFiniteError | None:
    """Return the reason why a request has failed at a token, or None."""
    if running.received == 0 and (error := input_error(running.request)) is not None:
        return error
    return NonFiniteError(stage, "logits", found="NaN or infinity") if token == INVALID_TOKEN else None
