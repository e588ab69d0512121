"""Scheduler of questions on one continuous batch, shared by batch inference and serving.

The caller keeps the questions that wait and decides when a step runs. The scheduler joins questions to the batch,
collects their tokens and retires finished answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from unfuse.engines.batching import Request
from unfuse.errors import UnfuseError
from unfuse.samples import Question
from unfuse.staged_model import StagedModel
from unfuse.stages import Generation, StopReason


@dataclass(eq=False, kw_only=True, slots=True)
class ScheduledQuestion:
    """A question with the tokens generated so far."""

    question: Question
    prompt_tokens: int = 0
    """Length of the prompt; known once the question has joined the batch."""
    reused_prefix_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    generation: Generation | None = None
    """The complete answer; None until the last token."""
    error: UnfuseError | None = None
    """Reason why there will be no complete answer, after the question has joined."""


Scheduled = TypeVar("Scheduled", bound=ScheduledQuestion)


class Scheduler(Generic[Scheduled]):
    """Runs questions on one continuous batch. For one thread."""

    def __init__(
        self,
        model: StagedModel,
        capacity: int | None = None,
        *,
        queue: int = 0,
        interleave: bool = False,
        refusals: tuple[type[Exception], ...] = (UnfuseError,),
    ):
        """Create an empty batch.

        Args:
            model: generates the answers.
            capacity: questions that are answered at the same time; the engine's default for None.
            queue: questions that may wait inside the batch; they join as soon as another answer ends.
            interleave: as for ``Engine.continuous``.
            refusals: errors that concern one question only; any other error is raised.
        """
        self._batch = model.continuous(capacity, interleave=interleave)
        self._decode_text = model.adapter.decode_text
        self._limit = self._batch.capacity + queue
        self._refusals = refusals
        self._in_batch: dict[str, Scheduled] = {}

    @property
    def capacity(self) -> int:
        """Questions that are answered at the same time."""
        return self._batch.capacity

    @property
    def limit(self) -> int:
        """Questions that may be in the batch, those in its queue included."""
        return self._limit

    @property
    def unfinished(self) -> int:
        """Questions in the batch."""
        return len(self._in_batch)

    @property
    def busy_s(self) -> Mapping[str, float]:
        """Seconds spent in ``prefill`` and in ``decode`` so far."""
        return self._batch.busy_s

    def prepare(self) -> None:
        """See ``ContinuousBatch.prepare``."""
        self._batch.prepare()

    def join(self, joining: Sequence[tuple[Scheduled, Callable[[], Request]]]) -> list[tuple[Scheduled, Exception]]:
        """Add questions to the batch; it may prefill them together.

        Args:
            joining: questions, each with the call that builds its request under the question's ID.

        Returns:
            The questions that were refused, each with the reason.
        """
        ready: list[tuple[Scheduled, Request]] = []
        refused: list[tuple[Scheduled, Exception]] = []
        for scheduled, request in joining:
            try:
                ready.append((scheduled, request()))
            except self._refusals as error:
                refused.append((scheduled, error))
        return refused + self._add(ready)

    def step(self) -> Iterator[Scheduled]:
        """Run a step of the batch and yield a question after each of its new tokens, or when it has failed.

        Tokens that the caller does not take from the iterator are lost.
        """
        for output in self._batch.step():
            scheduled = self._in_batch[output.request_id]
            if output.error is not None:
                del self._in_batch[output.request_id]
                scheduled.error = output.error
                yield scheduled
                continue
            scheduled.token_ids.append(output.token_id)
            scheduled.reused_prefix_tokens = output.reused_prefix_tokens
            if output.finished is not None:
                del self._in_batch[output.request_id]
                scheduled.generation = self._generation(scheduled, output.finished)
            yield scheduled

    def abort(self, scheduled: Scheduled) -> None:
        """Remove a question from the batch; nothing happens if it is not in the batch."""
        request_id = scheduled.question.question_id
        if self._in_batch.pop(request_id, None) is not None:
            self._batch.abort(request_id)

    def close(self) -> None:
        """Remove all questions and free the batch."""
        self._in_batch.clear()
        self._batch.close()

    def _add(self, ready: Sequence[tuple[Scheduled, Request]]) -> list[tuple[Scheduled, Exception]]:
        if not ready:
            return []
        try:
            self._batch.add([request for _, request in ready])
        except self._refusals as error:
            if len(ready) == 1:
                return [(ready[0][0], error)]
            return [refused for each in ready for refused in self._add([each])]
        for scheduled, request in ready:
            scheduled.prompt_tokens = request.prompt.length
            self._in_batch[request.request_id] = scheduled
        return []

    def _generation(self, scheduled: Scheduled, stop_reason: StopReason) -> Generation:
        token_ids = tuple(scheduled.token_ids)
        return Generation(
            token_ids=token_ids,
            text=self._decode_text(token_ids),
            stop_reason=stop_reason,
            prompt_tokens=scheduled.prompt_tokens,
            reused_prefix_tokens=scheduled.reused_prefix_tokens,
        )
