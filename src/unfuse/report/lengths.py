"""Lengths of answers: as requested, ended where the record says, and counted as they are listed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from unfuse.records.schema import Manifest, SampleRecord
from unfuse.report.text import some

LIMIT: Final = "answers have the requested length, and nothing counts after their end"

_Fault = Callable[[SampleRecord], bool]


def length_faults(manifest: Manifest, records: Sequence[SampleRecord]) -> tuple[str, ...]:
    """Return a sentence for each kind of wrong length among measured records.

    Args:
        manifest: of the run; runs before schema 1.6 name no end tokens, so those rules are left out for them.
        records: measured, with or without tokens.
    """
    return tuple(
        f"{len(found)} of {len(records)} answers {text}: {some([each.sample_id for each in found])}"
        for text, is_wrong in _faults(manifest)
        if (found := [record for record in records if is_wrong(record)])
    )


def _faults(manifest: Manifest) -> Iterator[tuple[str, _Fault]]:
    config, model = manifest.config, manifest.model
    yield "count other tokens than they list", _miscounted
    exact, most = config.get("output_length"), config.get("max_new_tokens")
    if exact is not None:
        yield f"do not have the {exact} tokens of --output-length", lambda r: _tokens(r) != exact
    elif most is not None:
        yield f"are longer than the {most} tokens of --max-new-tokens", lambda r: _tokens(r) > most
        positions = model.get("max_positions")
        yield (
            f"stopped early: fewer than {most} tokens, and their reason to stop is the length",
            lambda r: r.stop_reason == "length" and _tokens(r) < most and not _is_full(r, positions),
        )
    if model.get("end_ids") is not None:
        ends = frozenset(model["end_ids"])
        yield (
            "stopped early: their reason to stop is an end token, and their last token is none",
            lambda r: r.stop_reason == "eos" and r.token_ids is not None and r.token_ids[-1:] not in _singles(ends),
        )
        yield "count tokens after their end token", lambda r: bool(ends & set((r.token_ids or ())[:-1]))


def _tokens(record: SampleRecord) -> int:
    return record.output_tokens or 0


def _miscounted(record: SampleRecord) -> bool:
    return record.token_ids is not None and len(record.token_ids) != _tokens(record)


def _is_full(record: SampleRecord, positions: Any) -> bool:
    """Return whether prompt and answer fill the positions of the model, which ends an answer too."""
    used = (record.text_tokens or 0) + (record.media_tokens or 0) + _tokens(record)
    return positions is not None and used >= positions


def _singles(ids: frozenset[int]) -> frozenset[tuple[int, ...]]:
    return frozenset((token,) for token in ids)
