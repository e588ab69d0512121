"""Speculation of one run: drafted and accepted tokens, and the time of decoding with known and with new answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from unfuse.records.schema import SampleRecord
from unfuse.report.statistics import Distribution, distribution


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeculationSummary:
    """Decode passes of all measured samples."""

    decode_passes: int
    draft_tokens: int
    accepted_tokens: int
    tokens_per_pass: float | None
    """Mean acceptance length: the accepted tokens of a pass and the model's own token."""
    acceptance_rate: float | None
    """Share of the drafted tokens that were accepted."""
    passes_by_accepted: tuple[int, ...]
    """Number of passes with 0, 1, 2, ... accepted tokens."""
    drafting_ms_per_pass: float | None
    """Time that the host spent on drafts."""
    samples: int
    answers_known: int
    """Samples with an answer that an earlier sample had."""
    tpot_known: Distribution | None
    """Time per token after the first, of known answers."""
    tpot_new: Distribution | None
    """Time per token after the first, of all other answers."""
    pass_ms: Distribution | None
    """Time of ``decode`` per pass."""


def speculation_summary(records: Sequence[SampleRecord]) -> SpeculationSummary | None:
    """Summarise the samples of a run; None without speculation."""
    found = [record for record in records if record.decode_passes is not None]
    if not found:
        return None
    passes = sum(record.decode_passes or 0 for record in found)
    drafted, accepted = (sum(getattr(r, name) or 0 for r in found) for name in ("draft_tokens", "accepted_tokens"))
    histogram = Counter(count for record in found for count in record.accepted_by_pass or ())
    return SpeculationSummary(
        decode_passes=passes,
        draft_tokens=drafted,
        accepted_tokens=accepted,
        tokens_per_pass=1 + accepted / passes if passes else None,
        acceptance_rate=accepted / drafted if drafted else None,
        passes_by_accepted=tuple(histogram[count] for count in range(max(histogram, default=-1) + 1)),
        drafting_ms_per_pass=sum(record.drafting_ms or 0.0 for record in found) / passes if passes else None,
        samples=len(found),
        answers_known=sum(bool(record.answer_known) for record in found),
        tpot_known=_tpot(found, known=True),
        tpot_new=_tpot(found, known=False),
        pass_ms=distribution([_decode_ms(r) / r.decode_passes for r in found if r.decode_passes], "ms"),
    )


def speculation_line(found: SpeculationSummary) -> str:
    """Return the summary in a sentence or two."""
    if found.tokens_per_pass is None or found.drafting_ms_per_pass is None:
        return "Speculation: no decode pass."
    rate = "" if found.acceptance_rate is None else f" ({100 * found.acceptance_rate:.0f} %)"
    times = [
        f"{name} {times.p50:.3f} ms a token"
        for name, times in (("known", found.tpot_known), ("new", found.tpot_new))
        if times is not None
    ]
    return (
        f"Speculation: {found.tokens_per_pass:.2f} tokens a pass, {found.accepted_tokens} of {found.draft_tokens} "
        f"drafted tokens accepted{rate}, {found.drafting_ms_per_pass:.3f} ms of drafting a pass. "
        f"{found.answers_known} of {found.samples} answers were known before; decode (medians): {', '.join(times)}."
    )


def _tpot(records: Sequence[SampleRecord], *, known: bool) -> Distribution | None:
    times = [
        _decode_ms(r) / (r.output_tokens - 1)
        for r in records
        if bool(r.answer_known) is known and r.output_tokens is not None and r.output_tokens > 1
    ]
    return distribution(times, "ms")


def _decode_ms(record: SampleRecord) -> float:
    return record.stages["decode"].host_ms
