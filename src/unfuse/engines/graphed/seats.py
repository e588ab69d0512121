"""Where the rows of a continuous batch sit: memory that captured steps read, and the steps."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import torch

from unfuse.engines.graphed.kernels.rows import largest
from unfuse.engines.graphed.kernels.shared_attention import MEMBERS
from unfuse.engines.graphed.network import Network
from unfuse.engines.graphed.under_way import Row, groups_of
from unfuse.engines.graphed.workspace import MOST_TOGETHER

if TYPE_CHECKING:
    from unfuse.engines.graphed.continuous import GraphedBatch

ROWS: Final = (16, 64, 128, MOST_TOGETHER)
"""Rows of the steps that are captured. Few sizes: capturing takes about a second, and rows that stand for nothing cost
little beside those that do."""
GROUPS: Final = (0, 8, 32, 96, MOST_TOGETHER)
"""Groups of rows that begin alike, in those steps."""


class Seats:
    """Of one batch at a time; the steps stay captured for the next."""

    def __init__(
        self,
        network: Network,
        captured: Callable[[Callable[[], None]], Callable[[], None]],
        end_ids: torch.Tensor,
    ):
        """Takes memory for the largest step.

        Args:
            network: what steps run on.
            captured: makes a graph of a call.
            end_ids: tokens that end an answer, int64, on the device.
        """
        self.user: weakref.ref[GraphedBatch] | None = None
        self.batch = network.batch(MOST_TOGETHER)
        device = network.llama.device
        self.first = torch.zeros(MOST_TOGETHER, dtype=torch.int64, device=device)
        """First tokens of those who are about to sit down."""
        self._network, self._captured, self._end_ids = network, captured, end_ids
        # Each row may share something else.
        self._shared = network.shared(MOST_TOGETHER)
        self._barred = torch.zeros(MOST_TOGETHER, dtype=torch.bool, device=device)
        self._steps: dict[tuple[int, int], Callable[[], None]] = {}
        self._seated: list[Row] = []

    def prepare(self, rows: int) -> None:
        """Captures the steps that up to so many rows need, where they share nothing."""
        most = next(size for size in ROWS if size >= rows)
        for size in ROWS:
            if size <= most:
                self._step(size, 0)

    def step(self, rows: list[Row]) -> None:
        """One more token of each: into ``batch.token``, in the order of the rows."""
        size, groups = next(size for size in ROWS if size >= len(rows)), groups_of(rows)
        run = self._step(size, next(most for most in GROUPS if most >= len(groups)))
        if rows != self._seated:
            self._seat(rows, size)
            if groups:
                self._say_who_shares(rows, groups)
        run()

    def vacate(self) -> None:
        """Lets go of who was last seated, and so of their keys and values."""
        self._seated = []

    def uploaded(self, values: torch.Tensor) -> torch.Tensor:
        """On the device, without waiting for it."""
        device = self._network.llama.device
        return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values

    def _seat(self, rows: list[Row], size: int) -> None:
        """Puts the rows' state where the step reads it."""
        batch = self.batch.first(size)
        work, nowhere = batch.work, batch.work.nowhere
        lines = [
            (
                row.column,
                row.length - row.held.shared + row.launched - 1,
                row.position + row.launched - 1,
                work.offset(row.held.sequence),
                row.held.sequence.capacity,
                int(row.request.sampling.ignore_eos),
            )
            for row in rows
        ]
        lines += [(0, 0, 0, work.offset(nowhere), nowhere.capacity, 0)] * (size - len(rows))
        source, length, position, caches, capacity, barred = self.uploaded(torch.tensor(lines).t().contiguous())
        batch.token.copy_(torch.cat([self.batch.token, self.first])[source])
        batch.length.copy_(length)
        batch.position.copy_(position)
        batch.caches.copy_(caches)
        batch.capacity.copy_(capacity)
        self._barred[:size].copy_(barred)
        self._seated = rows

    def _say_who_shares(self, rows: list[Row], groups: list[list[int]]) -> None:
        """The same of what several rows begin with."""
        shared, lines = self._shared, []
        for columns in groups:
            held = rows[columns[0]].held
            assert held.ahead is not None
            ahead = held.ahead.sequence
            members = columns + [-1] * (MEMBERS - len(columns))
            lines.append([self.batch.work.offset(ahead), ahead.capacity, held.shared, *members])
        lines += [[0, 1, 0, *[-1] * MEMBERS]] * (len(shared.length) - len(lines))
        table = self.uploaded(torch.tensor(lines))
        shared.caches.copy_(table[:, 0])
        shared.capacity.copy_(table[:, 1])
        shared.length.copy_(table[:, 2])
        shared.members.copy_(table[:, 3:])
        flags = [int(row.held.shared > 0) for row in rows] + [0] * (len(shared.shares) - len(rows))
        shared.shares.copy_(self.uploaded(torch.tensor(flags)))

    def _step(self, size: int, groups: int) -> Callable[[], None]:
        key = size, groups
        if key not in self._steps:
            network = self._network
            network.tune(size)
            batch, end_ids, barred = self.batch.first(size), self._end_ids, self._barred[:size]
            shared = self._shared.first(groups, network.llama.heads.kv_heads) if groups else None

            def work() -> None:
                network.step(batch, shared)
                largest(batch.token, batch.logits, end_ids, barred)

            # What captures runs the step first: on rows that stand for nothing.
            tokens = batch.token.clone()
            batch.caches.fill_(batch.work.offset(batch.work.nowhere))
            batch.capacity.fill_(batch.work.nowhere.capacity)
            batch.length.zero_()
            batch.position.zero_()
            if shared is not None:
                shared.length.zero_()
                shared.shares.zero_()
            self._steps[key] = self._captured(work)
            batch.token.copy_(tokens)
            self._seated = []
        return self._steps[key]
