"""Continuous batching on captured steps: prompts join in passes together, rows leave as they end.

The host runs ahead: while the device works on a step, the host reads the tokens of the one before. So a row that has
chosen its end token is computed once more, unseen; one that reaches its length is not.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from unfuse.engines.batching import Request, TurnByTurn, Written
from unfuse.engines.graphed.caches import Held, Shelf
from unfuse.engines.graphed.capture import go_to, ordinary_tensors
from unfuse.engines.graphed.kernels.rows import largest
from unfuse.engines.graphed.network import Network
from unfuse.engines.graphed.prompts import PASS_ROWS, SEVERAL, Prompts, Rows
from unfuse.engines.graphed.seats import Seats
from unfuse.engines.graphed.under_way import Flight, Row, positions_of, prompt_length, seconds_between
from unfuse.engines.graphed.workspace import MOST_TOGETHER
from unfuse.engines.sampling import TokenChooser
from unfuse.errors import DeviceError
from unfuse.stages import StopReason


class GraphedBatch:
    """See ``ContinuousBatch``. All work is on the current stream."""

    def __init__(
        self,
        network: Network,
        prompts: Prompts,
        seats: Callable[[GraphedBatch], Seats],
        others: TurnByTurn,
        refuses: Callable[[Request], bool],
        end_ids: torch.Tensor,
        *,
        capacity: int | None,
        interleave: bool,
        most_bytes: int,
    ):
        """For ``GraphedEngine.continuous``.

        Args:
            network: what steps and passes run on.
            prompts: passes over prompts.
            seats: gives memory for the rows of steps, which this then has to itself until it is closed.
            others: takes the requests that this cannot.
            refuses: whether it is one of those.
            end_ids: tokens that end an answer, int64, on the device.
            capacity: requests at the same time; by default as many as a step takes.
            interleave: run one pass over prompts a step at most.
            most_bytes: keys and values that may be held.
        """
        self.capacity = min(capacity or MOST_TOGETHER, MOST_TOGETHER)
        self._interleave = interleave
        self._network, self._prompts = network, prompts
        self._find_seats = seats
        self._seats: Seats | None = None
        self._others, self._refuses = others, refuses
        self._end_ids = end_ids
        self._ends = frozenset(end_ids.tolist())
        self._shelf = Shelf(network.llama, most_bytes)
        self._waiting: deque[Request] = deque()
        self._rows: dict[str, Row] = {}
        self._flying: deque[Flight] = deque()
        self._busy = {"prefill": 0.0, "decode": 0.0}
        self._firsts = 0
        """First tokens of those who join at this step, so far."""

    @property
    def unfinished(self) -> int:
        """See ``ContinuousBatch.unfinished``."""
        return len(self._waiting) + len(self._rows) + self._others.unfinished

    @property
    def busy_s(self) -> Mapping[str, float]:
        """Seconds of the device; see ``ContinuousBatch.busy_s``."""
        return {stage: seconds + self._others.busy_s[stage] for stage, seconds in self._busy.items()}

    @ordinary_tensors()
    def prepare(self) -> None:
        """See ``ContinuousBatch.prepare``."""
        go_to(self._network.llama.device)
        self._own_seats().prepare(self.capacity)

    def add(self, requests: Sequence[Request]) -> None:
        """See ``ContinuousBatch.add``.

        Raises:
            DeviceError: a request whose keys and values alone are more than the device has room for.
        """
        for request in requests:
            if not self._shelf.holds(positions_of(request)):
                raise DeviceError(
                    f"request {request.request_id}",
                    found=f"a prompt and an answer of up to {positions_of(request)} positions",
                    expected="as many as the device's memory holds beside the model",
                    fix="ask for fewer new tokens",
                )
        for request in requests:
            if self._refuses(request):
                self._others.add([request])
            else:
                self._waiting.append(request)

    @ordinary_tensors()
    def step(self) -> list[Written]:
        """See ``ContinuousBatch.step``."""
        go_to(self._network.llama.device)
        self._admit()
        launched = self._launch()
        written = list(self._others.step()) if self._others.unfinished else []
        while len(self._flying) > launched:
            written.extend(self._land(self._flying.popleft()))
        return written

    def abort(self, request_id: str) -> None:
        """See ``ContinuousBatch.abort``."""
        self._others.abort(request_id)
        self._waiting = deque(request for request in self._waiting if request.request_id != request_id)
        if request_id in self._rows:
            self._leave(self._rows[request_id])

    def close(self) -> None:
        """See ``ContinuousBatch.close``."""
        self._others.close()
        self._waiting.clear()
        self._rows.clear()
        self._flying.clear()
        self._shelf.close()
        if self._seats is not None:
            self._seats.vacate()
            self._seats.user = None
            self._seats = None

    def _admit(self) -> None:
        """Runs passes over the prompts that there is room for."""
        self._firsts = 0
        chosen: list[tuple[Row, Rows]] = []
        while self._waiting and len(self._rows) < self.capacity:
            request = self._waiting[0]
            # One position at least must be computed: its logits give the first token.
            prompt, longest = request.prompt, prompt_length(request) - 1
            keys = prompt.token_keys if request.reuse else ()
            match = self._shelf.match(keys, prompt.features_digest, longest)
            reused = match.positions if match else 0
            full = (
                len(chosen) == SEVERAL or sum(len(rows.embeds) for _, rows in chosen) + longest + 1 - reused > PASS_ROWS
            )
            # Where it begins must have been computed before.
            if chosen and (full or (match and any(row.held is match.held for row, _ in chosen))):
                self._pass(chosen)
                chosen = []
                if self._interleave:
                    break
            held = self._shelf.take(positions_of(request), keys, prompt.features_digest, match)
            if held is None and match and not self._rows:
                # Nobody will end and leave room; what it would begin like must go.
                held = self._shelf.take(positions_of(request), keys, prompt.features_digest, None)
            if held is None:
                break
            self._waiting.popleft()
            chosen.append(self._row(request, held))
        if chosen:
            self._pass(chosen)

    def _row(self, request: Request, held: Held) -> tuple[Row, Rows]:
        embeds, positions, following = self._prompts.rows(request.prompt)
        chooser = None
        if request.sampling.temperature > 0:
            chooser = TokenChooser(request.sampling, self._end_ids, embeds.device)
        row = Row(request, held, following, chooser)
        self._rows[request.request_id] = row
        ahead = held.ahead.sequence if held.ahead else None
        return row, Rows(embeds[held.shared :], positions[:, held.shared :], held.sequence, ahead, held.shared)

    def _own_seats(self) -> Seats:
        if self._seats is None:
            self._seats = self._find_seats(self)
        return self._seats

    def _pass(self, chosen: list[tuple[Row, Rows]]) -> None:
        begun, seats = self._now(), self._own_seats()
        rows = [row for row, _ in chosen]
        logits = self._prompts([each for _, each in chosen])
        tokens = seats.first[self._firsts : self._firsts + len(rows)]
        barred = seats.uploaded(torch.tensor([row.request.sampling.ignore_eos for row in rows]))
        largest(tokens, logits, self._end_ids, barred)
        for index, row in enumerate(rows):
            row.column = MOST_TOGETHER + self._firsts + index
            if row.chooser is not None:
                tokens[index] = row.chooser(logits[index])
        self._firsts += len(rows)
        self._fly(rows, tokens, "prefill", begun)

    def _launch(self) -> int:
        """Starts a step of all rows that go on; how many were started, one or none."""
        rows = [row for row in self._rows.values() if row.goes_on]
        if not rows:
            if self._seats is not None:
                self._seats.vacate()
            return 0
        begun, seats = self._now(), self._own_seats()
        seats.step(rows)
        for column, row in enumerate(rows):
            row.launched += 1
            row.column = column
            if row.chooser is not None:
                seats.batch.token[column] = row.chooser(seats.batch.logits[column])
        self._fly(rows, seats.batch.token[: len(rows)], "decode", begun)
        return 1

    def _fly(self, rows: list[Row], tokens: torch.Tensor, stage: str, begun: torch.cuda.Event | float) -> None:
        there = torch.empty(len(tokens), dtype=tokens.dtype, pin_memory=tokens.is_cuda)
        there.copy_(tokens, non_blocking=True)
        self._flying.append(Flight(list(rows), there, stage, begun, self._now()))

    def _land(self, flight: Flight) -> Iterator[Written]:
        self._busy[flight.stage] += seconds_between(flight.begun, flight.there)
        for row, token in zip(flight.rows, flight.tokens.tolist(), strict=True):
            if row.ended:
                continue
            row.landed += 1
            finished: StopReason | None = None
            if token in self._ends:
                finished = "eos"
            elif row.landed == row.request.max_new_tokens:
                finished = "length"
            if finished is not None:
                self._leave(row)
            yield Written(
                request_id=row.request.request_id,
                token_id=token,
                finished=finished,
                reused_prefix_tokens=row.held.shared,
            )

    def _leave(self, row: Row) -> None:
        row.ended = True
        del self._rows[row.request.request_id]
        self._shelf.let_go(row.held)

    def _now(self) -> torch.cuda.Event | float:
        if self._network.llama.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
