"""Slots of a continuous batch: the tensors that captured decode steps read, and the captured steps."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Final

import torch

from unfuse.engines.graphed.in_flight import RunningRequest, groups_of
from unfuse.engines.graphed.kernels.argmax import argmax
from unfuse.engines.graphed.kernels.shared_prefix_attention import MEMBERS
from unfuse.engines.graphed.model_runner import ModelRunner
from unfuse.engines.graphed.workspace import MAX_BATCH

BATCH_SIZES: Final = (16, 64, 128, MAX_BATCH)
"""Sizes of the captured steps. A capture takes about a second, and an empty slot costs little, so there are few."""
GROUPS: Final = (0, 8, 32, 96, MAX_BATCH)
"""Groups of requests with a shared prefix in a captured step."""


class Slots:
    """Slots that one batch owns at a time. The captured steps stay for the next batch.

    The requests of a step have the slots 0, 1, 2, ... in order. Whenever a request joins or leaves, all requests are
    assigned and uploaded again, so no slot is empty between two others.
    """

    def __init__(
        self,
        runner: ModelRunner,
        capture: Callable[[Callable[[], None]], Callable[[], None]],
        end_ids: torch.Tensor,
    ):
        """Allocate the tensors of the largest step.

        Args:
            runner: runs decode steps.
            capture: makes a graph of a function.
            end_ids: int64, on the device: tokens that end an answer.
        """
        self.owner: weakref.ref[Any] | None = None
        """The batch that owns the slots."""
        self.batch = runner.decode_batch(MAX_BATCH)
        device = runner.llama.device
        self.first_tokens = torch.zeros(MAX_BATCH, dtype=torch.int64, device=device)
        """First tokens of the requests that were prefilled since the last step."""
        self._runner, self._capture, self._end_ids = runner, capture, end_ids
        # Room for MAX_BATCH prefixes, since every request may share a different prefix.
        self._shared = runner.shared_prefixes(MAX_BATCH)
        self._eos_masked = torch.zeros(MAX_BATCH, dtype=torch.bool, device=device)
        self._steps: dict[tuple[int, int], Callable[[], None]] = {}
        self._assigned: list[RunningRequest] = []

    def prepare(self, requests: int) -> None:
        """Capture the steps for up to so many requests that share no prefix."""
        most = next(size for size in BATCH_SIZES if size >= requests)
        for size in BATCH_SIZES:
            if size <= most:
                self._step(size, 0)

    def step(self, requests: list[RunningRequest]) -> None:
        """Compute one more token of each request: into ``batch.token``, in the order of the requests."""
        size, groups = next(size for size in BATCH_SIZES if size >= len(requests)), groups_of(requests)
        run = self._step(size, next(most for most in GROUPS if most >= len(groups)))
        if requests != self._assigned:
            self._assign(requests, size)
            if groups:
                self._upload_groups(requests, groups)
        run()

    def clear(self) -> None:
        """Forget the requests, and with them the references to their KV caches."""
        self._assigned = []

    def uploaded(self, values: torch.Tensor) -> torch.Tensor:
        """Return a copy on the device; the host does not wait for it."""
        device = self._runner.llama.device
        return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values

    def _assign(self, requests: list[RunningRequest], size: int) -> None:
        """Upload the requests' state to the tensors that the step reads."""
        batch = self.batch.first(size)
        work, dummy = batch.work, batch.work.dummy_cache
        lines = [
            (
                each.slot,
                each.length - each.entry.prefix_length + each.submitted - 1,
                each.position + each.submitted - 1,
                work.offset(each.entry.cache),
                each.entry.cache.capacity,
                int(each.request.sampling.ignore_eos),
            )
            for each in requests
        ]
        lines += [(0, 0, 0, work.offset(dummy), dummy.capacity, 0)] * (size - len(requests))
        source, length, position, caches, capacity, eos_masked = self.uploaded(torch.tensor(lines).t().contiguous())
        batch.token.copy_(torch.cat([self.batch.token, self.first_tokens])[source])
        batch.length.copy_(length)
        batch.position.copy_(position)
        batch.caches.copy_(caches)
        batch.capacity.copy_(capacity)
        self._eos_masked[:size].copy_(eos_masked)
        self._assigned = requests

    def _upload_groups(self, requests: list[RunningRequest], groups: list[list[int]]) -> None:
        """Upload the shared prefixes and their members."""
        shared, lines = self._shared, []
        for slots in groups:
            entry = requests[slots[0]].entry
            assert entry.prefix_entry is not None
            prefix = entry.prefix_entry.cache
            members = slots + [-1] * (MEMBERS - len(slots))
            lines.append([self.batch.work.offset(prefix), prefix.capacity, entry.prefix_length, *members])
        lines += [[0, 1, 0, *[-1] * MEMBERS]] * (len(shared.length) - len(lines))
        table = self.uploaded(torch.tensor(lines))
        shared.caches.copy_(table[:, 0])
        shared.capacity.copy_(table[:, 1])
        shared.length.copy_(table[:, 2])
        shared.members.copy_(table[:, 3:])
        flags = [int(each.entry.prefix_length > 0) for each in requests]
        flags += [0] * (len(shared.in_group) - len(requests))
        shared.in_group.copy_(self.uploaded(torch.tensor(flags)))

    def _step(self, size: int, groups: int) -> Callable[[], None]:
        key = size, groups
        if key not in self._steps:
            runner = self._runner
            runner.tune_decode(size)
            batch, end_ids, eos_masked = self.batch.first(size), self._end_ids, self._eos_masked[:size]
            shared = self._shared.first(groups, runner.llama.heads.num_kv_heads) if groups else None

            def decode() -> None:
                runner.decode(batch, shared)
                argmax(batch.token, batch.logits, end_ids, eos_masked)

            # A capture runs the step first, here with empty slots.
            tokens = batch.token.clone()
            batch.caches.fill_(batch.work.offset(batch.work.dummy_cache))
            batch.capacity.fill_(batch.work.dummy_cache.capacity)
            batch.length.zero_()
            batch.position.zero_()
            if shared is not None:
                shared.length.zero_()
                shared.in_group.zero_()
            self._steps[key] = self._capture(decode)
            batch.token.copy_(tokens)
            self._assigned = []
        return self._steps[key]
