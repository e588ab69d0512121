"""Several runs on the same samples, side by side: ratios of their times, and differences of their work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from unfuse.records.schema import FUSED_STAGE, PROTOCOL_STAGES, SCHEMA_VERSION, Manifest, SampleRecord
from unfuse.report.claims import claimed_llm, claimed_vision
from unfuse.report.statistics import Ratio, ratio
from unfuse.report.summary import Summary
from unfuse.report.verdict import CONTROL_PROTOCOL, Word, word_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One model under one protocol: its run, or why there is none."""

    model: str
    protocol: str
    manifest: Manifest | None = None
    records: tuple[SampleRecord, ...] = ()
    summary: Summary | None = None
    error: str | None = None
    refused: bool = False
    """Whether the model cannot be measured under this protocol: a finding, not a failure."""

    @property
    def name(self) -> str:
        """Name in headings."""
        return f"{self.model} ({self.protocol})"

    @property
    def measured(self) -> tuple[SampleRecord, ...]:
        """Samples that entered the statistics."""
        return tuple(r for r in self.records if r.status == "ok" and not r.warmup)


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRatio:
    """One stage of one model against that stage of the reference."""

    model: str
    reference: str
    protocol: str
    stage: str
    ratio: Ratio


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A difference between the work of models, which makes their times unequal."""

    what: str
    values: Mapping[str, str]
    """By model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartResult:
    """One part in the comparison's ``summary.json``; its own folder has the rest."""

    model: str
    protocol: str
    error: str | None
    verdict: str | None
    stages_host_ms: Mapping[str, float | None]
    """Medians."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Everything that a report says about several runs."""

    parts: tuple[Part, ...]
    ratios: tuple[StageRatio, ...]
    differences: tuple[Difference, ...]

    @property
    def valid(self) -> bool:
        """True if every part that could run did and is valid; the control ``reencode`` has to be invalid."""
        tried = [part for part in self.parts if not part.refused]
        return bool(tried) and all(
            part.summary is not None and part.summary.verdict.valid != (part.protocol == CONTROL_PROTOCOL)
            for part in tried
        )

    @property
    def word(self) -> Word:
        """``VALID`` or ``INVALID``."""
        return word_of(valid=self.valid)

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison for ``summary.json``."""
        parts = [
            PartResult(
                model=part.model,
                protocol=part.protocol,
                error=part.error,
                verdict=part.summary.verdict.word if part.summary else None,
                stages_host_ms={
                    stage: None if d is None else d.p50
                    for stage, d in (part.summary.stages_host if part.summary else {}).items()
                },
            )
            for part in self.parts
        ]
        return {
            "schema_version": SCHEMA_VERSION,
            "valid": self.valid,
            "parts": [asdict(each) for each in parts],
            "ratios": [asdict(each) for each in self.ratios],
            "differences": [asdict(each) for each in self.differences],
        }


def compare(parts: Sequence[Part]) -> Comparison:
    """Compare models under each protocol; the first model is the reference."""
    ratios: list[StageRatio] = []
    for protocol in dict.fromkeys(part.protocol for part in parts):
        ran = [part for part in parts if part.protocol == protocol and part.measured]
        for part in ran[1:]:
            ratios += _ratios(part, ran[0])
    return Comparison(parts=tuple(parts), ratios=tuple(ratios), differences=_differences(parts))


def stage_names(protocol: str) -> tuple[str, ...]:
    """Return the rows of a protocol's table: its stages, Stage 4 of the 4-stage view, and the sum."""
    return (*PROTOCOL_STAGES[protocol], *(["generate (S4)"] if protocol == "decoupled" else []), "sum of stages")


def stage_ms(record: SampleRecord, stage: str, protocol: str) -> float:
    """Return the host ms of a row of ``stage_names``."""
    if stage == "sum of stages":
        return record.total_host_ms
    if stage == "generate (S4)":
        return claimed_llm(record, protocol) or 0.0
    return record.stages[stage].host_ms


def claims_of(part: Part) -> dict[str, list[float]]:
    """Return the times that a protocol would claim for the seed's four stages, in ms, sample by sample.

    A stage without a claim is missing.
    """
    rows: dict[str, list[float]] = {"S1 load": [], "S2 preprocess": [], "S3 vision": [], "S4 LLM": [], "total": []}
    for record in part.measured:
        rows["S1 load"].append(record.stages["load"].host_ms)
        rows["S2 preprocess"].append(record.stages["preprocess"].host_ms)
        vision, llm = claimed_vision(record, part.protocol), claimed_llm(record, part.protocol)
        if vision is not None:
            rows["S3 vision"].append(vision)
        if llm is not None:
            rows["S4 LLM"].append(llm)
        rows["total"].append(record.total_host_ms)
    if part.protocol == "fused":
        rows["S3 + S4 in one"] = [record.stages[FUSED_STAGE].host_ms for record in part.measured]
    return {name: values for name, values in rows.items() if values}


def _ratios(part: Part, reference: Part) -> list[StageRatio]:
    found = []
    for stage in stage_names(part.protocol):
        ours, theirs = (
            {r.sample_id: stage_ms(r, stage, part.protocol) for r in each.measured} for each in (part, reference)
        )
        value = ratio(ours, theirs)
        if value is not None:
            found.append(
                StageRatio(
                    model=part.model, reference=reference.model, protocol=part.protocol, stage=stage, ratio=value
                )
            )
    return found


_FACTS: Final[dict[str, Callable[[Part], str]]] = {
    "media shown": lambda part: _values(r.media for r in part.measured),
    "frames": lambda part: _values(r.num_frames for r in part.measured),
    "frame size": lambda part: _values(_size(r.frame_size) for r in part.measured),
    "pixels into the tower": lambda part: _values(_size(r.pixels) for r in part.measured),
    "text tokens of the prompt": lambda part: _values(r.text_tokens for r in part.measured),
    "vision tokens of the prompt": lambda part: _values(r.media_tokens for r in part.measured),
    "output tokens": lambda part: _values(r.output_tokens for r in part.measured),
    "samples measured": lambda part: str(len(part.measured)),
    "dtype": lambda part: str(part.manifest.model.get("dtype")) if part.manifest else "",
    "device": lambda part: str(part.manifest.environment.get("device_name")) if part.manifest else "",
    "engine": lambda part: str(part.manifest.model.get("engine")) if part.manifest else "",
}


def _differences(parts: Sequence[Part]) -> tuple[Difference, ...]:
    first = {part.model: part for part in reversed(parts) if part.measured}
    models = [model for model in dict.fromkeys(part.model for part in parts) if model in first]
    found = []
    for what, fact in _FACTS.items():
        values = {model: fact(first[model]) for model in models}
        if len(set(values.values())) > 1:
            found.append(Difference(what=what, values=values))
    return tuple(found)


def _values(values: Any) -> str:
    """Return one value, or the range or list of several."""
    seen = sorted({value for value in values if value is not None}, key=str)
    if not seen:
        return "-"
    if all(isinstance(value, int) for value in seen) and len(seen) > 1:
        return f"{min(seen)} to {max(seen)}"
    return ", ".join(map(str, seen[:4])) + (", ..." if len(seen) > 4 else "")


def _size(shape: tuple[int, ...] | None) -> str | None:
    return None if shape is None else " x ".join(map(str, shape))
