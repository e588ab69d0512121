"""Samples as the inputs that a resumed run compares with its records."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import partial

from unfuse.records.inputs import PresentInput
from unfuse.samples.question import Question
from unfuse.samples.sample import Sample, media_key


def present_inputs(
    rows: Iterable[tuple[Sample, Question]], media_sha256: Callable[[Sample], str]
) -> Iterator[PresentInput]:
    """Yield the input of every question.

    Args:
        rows: each question with its sample.
        media_sha256: reads and hashes the media of a sample, once for all questions about them.
    """
    hashes: dict[Hashable, str] = {}

    def hash_of(sample: Sample) -> str:
        key = media_key(sample)
        if key not in hashes:
            hashes[key] = media_sha256(sample)
        return hashes[key]

    for sample, question in rows:
        yield PresentInput(
            sample_id=question.question_id,
            question=question.text,
            media=str(next(iter(sample.files), "frames in memory")),
            media_sha256=partial(hash_of, sample),
        )
