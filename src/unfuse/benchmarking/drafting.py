"""Drafters of a benchmark: every pass over a sample drafts from the answers before the sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from unfuse.drafters import pick_drafter
from unfuse.records.schema import SampleRecord
from unfuse.speculation.drafter import Drafter
from unfuse.speculation.history import History
from unfuse.speculation.settings import SpeculationSettings
from unfuse.staged_model import StagedModel


class SampleDrafters:
    """Returns, for each sample, a drafter that has learnt the answers of the samples before, and no other.

    Warm-up, repeats, balance and energy of a sample therefore see equal histories, whenever they run.
    """

    def __init__(self, make: Callable[[], Drafter], earlier: Iterable[Sequence[int]] = ()):
        """Begin without answers.

        Args:
            make: returns a drafter without answers.
            earlier: answers that a drafter knows at the start of the run.
        """
        self._make, self._start = make, [tuple(token_ids) for token_ids in earlier]
        self._known = set(self._start)
        self._drafter = self._new()
        self._answers: dict[str, tuple[int, ...]] = {}
        self._earlier: tuple[str, Drafter] | None = None
        """The last sample that has an answer already, and the drafter before that answer."""

    def before(self, sample_id: str) -> Drafter:
        """Return the drafter for a sample."""
        if sample_id not in self._answers:
            return self._drafter
        if self._earlier is None or self._earlier[0] != sample_id:
            drafter = self._new()
            for name, token_ids in self._answers.items():
                if name == sample_id:
                    break
                drafter.learn(token_ids)
            self._earlier = sample_id, drafter
        return self._earlier[1]

    def knows(self, token_ids: Sequence[int]) -> bool:
        """Return whether an earlier sample, or the start of the run, had the answer."""
        return tuple(token_ids) in self._known

    def learn(self, record: SampleRecord) -> None:
        """Take the answer of a sample into account, once."""
        if record.status == "ok" and record.token_ids is not None and record.sample_id not in self._answers:
            self._answers[record.sample_id] = record.token_ids
            self._known.add(record.token_ids)
            self._drafter.learn(record.token_ids)

    def _new(self) -> Drafter:
        drafter = self._make()
        for token_ids in self._start:
            drafter.learn(token_ids)
        return drafter

    def learn_all(self, records: Sequence[SampleRecord]) -> None:
        """Take the samples of an interrupted run into account, in their order."""
        for record in records:
            if not record.warmup:
                self.learn(record)


def sample_drafters(
    model: StagedModel, speculation: SpeculationSettings
) -> tuple[SampleDrafters | None, tuple[str, ...]]:
    """Return the drafters of a benchmark, or None, with notes about the choice.

    Raises:
        InputError: as ``pick_drafter``.
        FileAccessError: as ``pick_drafter``.
    """
    if model.adapter.unsplittable is not None:
        return None, ()
    drafter, notes = pick_drafter(speculation, model.adapter, model.engine)
    if drafter is None:
        return None, notes

    def make() -> Drafter:
        made, _ = pick_drafter(replace(speculation, history=None), model.adapter, model.engine)
        assert made is not None
        return made

    # The file is read once: another process may change it during the run.
    earlier = [answer.tolist() for answer in drafter.answers] if isinstance(drafter, History) else ()
    return SampleDrafters(make, earlier), notes
