"""Continuous batching on captured steps: prompts join in passes together, rows leave as they end.

The host runs ahead: while the device works on a step, the host reads the tokens of the one before. So a row that has
chosen its end token is computed once more, unseen; one that reaches its length is not.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from unfuse.engines.batching import Request, TurnByTurn, Written
from unfuse.engines.graphed.caches import Held, Shelf
from unfuse.engines.graphed.kernels.decode_attention import MEMBERS, SharedParts
from unfuse.engines.graphed.network import MOST_TOGETHER, Batch, Network
from unfuse.engines.graphed.prompts import PASS_ROWS, SEVERAL, Prompts, Rows
from unfuse.engines.sampling import TokenChooser
from unfuse.errors import DeviceError
from unfuse.stages import StopReason

ROWS: Final = (16, 32, 64, 96, 128, 192, MOST_TOGETHER)
"""Rows of the steps that are captured."""
GROUPS: Final = (0, 8, 32, 96, MOST_TOGETHER)
"""Groups of rows that begin alike, in those steps."""


@dataclass(slots=True, eq=False)
class _Row:
    """A request under way."""

    request: Request
    held: Held
    position: int
    """Of the first token after the prompt, on the rotary axes."""
    chooser: TokenChooser | None
    """None where the step chooses: the largest logit."""
    column: int = 0
    """Where its last token is, among those of the step and, behind them, first tokens."""
    launched: int = 1
    """Tokens that are written or on their way."""
    landed: int = 0
    ended: bool = False

    @property
    def length(self) -> int:
        """Of its prompt."""
        return _length(self.request)

    @property
    def goes_on(self) -> bool:
        """Whether another token is wanted, as far as is known."""
        return not self.ended and self.launched < self.request.max_new_tokens


@dataclass(frozen=True, slots=True)
class _Flight:
    """Tokens on their way to the host."""

    rows: list[_Row]
    tokens: torch.Tensor
    stage: str
    begun: torch.cuda.Event | float
    there: torch.cuda.Event | float


class GraphedBatch:
    """See ``ContinuousBatch``. All work is on the current stream."""

    def __init__(
        self,
        network: Network,
        prompts: Prompts,
        captured: Callable[[Callable[[], None]], Callable[[], None]],
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
            captured: makes a graph of a call.
            others: takes the requests that this cannot.
            refuses: whether it is one of those.
            end_ids: tokens that end an answer, int64, on the device.
            capacity: requests at the same time; by default as many as a step takes.
            interleave: run one pass over prompts a step at most.
            most_bytes: keys and values that may be held.
        """
        self.capacity = min(capacity or MOST_TOGETHER, MOST_TOGETHER)
        self._interleave = interleave
        self._network, self._prompts, self._captured = network, prompts, captured
        self._others, self._refuses = others, refuses
        self._end_ids = end_ids
        self._ends = frozenset(end_ids.tolist())
        self._shelf = Shelf(network.llama, most_bytes)
        self._waiting: deque[Request] = deque()
        self._rows: dict[str, _Row] = {}
        self._seated: list[_Row] = []
        """As the step's memory has them."""
        self._flying: deque[_Flight] = deque()
        self._busy = {"prefill": 0.0, "decode": 0.0}
        self._batch: Batch | None = None
        device = network.llama.device
        self._barred = torch.zeros(MOST_TOGETHER, 1, dtype=torch.bool, device=device)
        self._first = torch.zeros(MOST_TOGETHER, dtype=torch.int64, device=device)
        self._firsts = 0
        self._steps: dict[tuple[int, int], Callable[[], None]] = {}
        self._shared: SharedParts | None = None

    @property
    def unfinished(self) -> int:
        """See ``ContinuousBatch.unfinished``."""
        return len(self._waiting) + len(self._rows) + self._others.unfinished

    @property
    def busy_s(self) -> Mapping[str, float]:
        """Seconds of the device; see ``ContinuousBatch.busy_s``."""
        return {stage: seconds + self._others.busy_s[stage] for stage, seconds in self._busy.items()}

    def add(self, requests: Sequence[Request]) -> None:
        """See ``ContinuousBatch.add``.

        Raises:
            DeviceError: a request whose keys and values alone are more than the device has room for.
        """
        for request in requests:
            if not self._shelf.holds(_positions(request)):
                raise DeviceError(
                    f"request {request.request_id}",
                    found=f"a prompt and an answer of up to {_positions(request)} positions",
                    expected="as many as the device's memory holds beside the model",
                    fix="ask for fewer new tokens",
                )
        for request in requests:
            if self._refuses(request):
                self._others.add([request])
            else:
                self._waiting.append(request)

    @torch.no_grad()
    def step(self) -> list[Written]:
        """See ``ContinuousBatch.step``."""
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
        self._seated = []
        self._flying.clear()
        self._shelf.close()
        self._steps.clear()
        self._batch = self._shared = None

    def _admit(self) -> None:
        """Runs passes over the prompts that there is room for."""
        self._firsts = 0
        chosen: list[tuple[_Row, Rows]] = []
        while self._waiting and len(self._rows) < self.capacity:
            request = self._waiting[0]
            # One position at least must be computed: its logits give the first token.
            prompt, longest = request.prompt, _length(request) - 1
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
            held = self._shelf.take(_positions(request), keys, prompt.features_digest, match)
            if held is None:
                break
            self._waiting.popleft()
            chosen.append(self._row(request, held))
        if chosen:
            self._pass(chosen)

    def _row(self, request: Request, held: Held) -> tuple[_Row, Rows]:
        embeds, positions, following = self._prompts.rows(request.prompt)
        chooser = None
        if request.sampling.temperature > 0:
            chooser = TokenChooser(request.sampling, self._end_ids, embeds.device)
        row = _Row(request, held, following, chooser)
        self._rows[request.request_id] = row
        ahead = held.ahead.sequence if held.ahead else None
        return row, Rows(embeds[held.shared :], positions[:, held.shared :], held.sequence, ahead, held.shared)

    def _pass(self, chosen: list[tuple[_Row, Rows]]) -> None:
        begun = self._now()
        rows = [row for row, _ in chosen]
        logits = self._prompts([each for _, each in chosen])
        tokens = self._first[self._firsts : self._firsts + len(rows)]
        barred = torch.tensor([[row.request.sampling.ignore_eos] for row in rows])
        tokens.copy_(self._largest(logits, self._uploaded(barred)))
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
            return 0
        size = next(size for size in ROWS if size >= len(rows))
        groups = self._groups(rows)
        step = self._step(size, next(most for most in GROUPS if most >= len(groups)))
        assert self._batch is not None
        batch = self._batch.first(size)
        begun = self._now()
        if rows != self._seated:
            self._seat(rows, batch)
            self._say_who_shares(rows, groups)
        step()
        for column, row in enumerate(rows):
            row.launched += 1
            row.column = column
            if row.chooser is not None:
                batch.token[column] = row.chooser(batch.logits[column])
        self._fly(rows, batch.token[: len(rows)], "decode", begun)
        return 1

    def _seat(self, rows: list[_Row], batch: Batch) -> None:
        """Puts the rows' state where the step reads it."""
        assert self._batch is not None
        anchor, nowhere = self._network.anchor, self._network.nowhere
        lines = [
            (
                row.column,
                row.length - row.held.shared + row.launched - 1,
                row.position + row.launched - 1,
                row.held.sequence.offset(anchor),
                row.held.sequence.capacity,
                int(row.request.sampling.ignore_eos),
            )
            for row in rows
        ]
        lines += [(0, 0, 0, nowhere.offset(anchor), nowhere.capacity, 0)] * (batch.rows - len(rows))
        source, length, position, caches, capacity, barred = self._uploaded(torch.tensor(lines).t().contiguous())
        batch.token.copy_(torch.cat([self._batch.token, self._first])[source])
        batch.length.copy_(length)
        batch.position.copy_(position)
        batch.caches.copy_(caches)
        batch.capacity.copy_(capacity)
        self._barred[: batch.rows, 0].copy_(barred)
        self._seated = rows

    def _groups(self, rows: list[_Row]) -> list[list[int]]:
        """Columns of rows that begin with the same positions of another sequence."""
        alike: dict[tuple[int, int], list[int]] = {}
        for column, row in enumerate(rows):
            if row.held.shared:
                alike.setdefault((id(row.held.ahead), row.held.shared), []).append(column)
        return [columns[at : at + MEMBERS] for columns in alike.values() for at in range(0, len(columns), MEMBERS)]

    def _say_who_shares(self, rows: list[_Row], groups: list[list[int]]) -> None:
        """Puts it where the step reads it."""
        if not groups:
            return
        assert self._shared is not None
        lines = []
        for columns in groups:
            held = rows[columns[0]].held
            assert held.ahead is not None
            ahead = held.ahead.sequence
            members = columns + [-1] * (MEMBERS - len(columns))
            lines.append([ahead.offset(self._network.anchor), ahead.capacity, held.shared, *members])
        shared = self._shared
        lines += [[0, 1, 0, *[-1] * MEMBERS]] * (len(shared.length) - len(lines))
        table = self._uploaded(torch.tensor(lines))
        shared.caches.copy_(table[:, 0])
        shared.capacity.copy_(table[:, 1])
        shared.length.copy_(table[:, 2])
        shared.members.copy_(table[:, 3:])
        flags = [int(row.held.shared > 0) for row in rows] + [0] * (len(shared.shares) - len(rows))
        shared.shares.copy_(self._uploaded(torch.tensor(flags)))

    def _step(self, size: int, groups: int) -> Callable[[], None]:
        if self._batch is None:
            self._batch = self._network.batch(MOST_TOGETHER)
            # Each row may share something else.
            self._shared = self._network.shared(MOST_TOGETHER)
        key = size, groups
        if key not in self._steps:
            self._network.tune(size)
            batch = self._batch.first(size)
            shared = self._shared.first(groups) if self._shared is not None and groups else None

            def work() -> None:
                self._network.step(batch, shared)
                batch.token.copy_(self._largest(batch.logits, self._barred[:size]))

            # What captures runs the step first: on rows that stand for nothing.
            tokens = batch.token.clone()
            batch.caches.fill_(self._network.nowhere.offset(self._network.anchor))
            batch.capacity.fill_(self._network.nowhere.capacity)
            batch.length.zero_()
            batch.position.zero_()
            if shared is not None:
                shared.length.zero_()
                shared.shares.zero_()
            self._steps[key] = self._captured(work)
            batch.token.copy_(tokens)
            self._seated = []
        return self._steps[key]

    def _largest(self, logits: torch.Tensor, barred: torch.Tensor) -> torch.Tensor:
        """Tokens of the largest logits, ``[R]``; never one that ends in rows where ``barred [R, 1]``."""
        if len(self._ends):
            ends = logits[:, self._end_ids]
            logits[:, self._end_ids] = ends.masked_fill(barred, float("-inf"))
        return logits.argmax(-1)

    def _fly(self, rows: list[_Row], tokens: torch.Tensor, stage: str, begun: torch.cuda.Event | float) -> None:
        there = torch.empty(len(tokens), dtype=tokens.dtype, pin_memory=tokens.is_cuda)
        there.copy_(tokens, non_blocking=True)
        self._flying.append(_Flight(list(rows), there, stage, begun, self._now()))

    def _land(self, flight: _Flight) -> Iterator[Written]:
        self._busy[flight.stage] += _seconds(flight.begun, flight.there)
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

    def _leave(self, row: _Row) -> None:
        row.ended = True
        del self._rows[row.request.request_id]
        self._shelf.let_go(row.held)

    def _uploaded(self, values: torch.Tensor) -> torch.Tensor:
        device = self._network.llama.device
        return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values

    def _now(self) -> torch.cuda.Event | float:
        if self._network.llama.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _seconds(begun: torch.cuda.Event | float, there: torch.cuda.Event | float) -> float:
    """Between the two, once the second has come."""
    if isinstance(begun, float) or isinstance(there, float):
        assert isinstance(begun, float)
        assert isinstance(there, float)
        return there - begun
    there.synchronize()
    milliseconds: float = begun.elapsed_time(there)
    return milliseconds / 1e3


def _length(request: Request) -> int:
    """Of its prompt."""
    return request.prompt.inputs_embeds.shape[1]


def _positions(request: Request) -> int:
    """That its prompt and its answer may take; the last token's keys are never needed."""
    return _length(request) + request.max_new_tokens
