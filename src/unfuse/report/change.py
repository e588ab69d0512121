"""Two runs, before and after: the change of every stage, and whether it is more than noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np

from unfuse.errors import InputError
from unfuse.records.schema import SCHEMA_VERSION, Manifest, Probes, SampleRecord
from unfuse.report.comparison import stage_ms, stage_names
from unfuse.report.differences import Differences, environment_differences, work_differences
from unfuse.report.statistics import NOISE_PCT, Ratio, median_interval, ratio
from unfuse.report.summary import Summary, summarise

Word = Literal["faster", "slower", "no difference shown"]
NOISE_THRESHOLD_PCT: Final = 1.0
"""Changes up to it are not called changes. Resampling sees the noise within runs; two runs of one program differ by
more."""
MIN_SAMPLES: Final = 6
"""Of fewer, all lie on one side of the truth more often than once in twenty (the sign test)."""
END_TO_END: Final = "end to end"


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One of two runs."""

    name: str
    """Name that the user gave."""
    manifest: Manifest
    records: tuple[SampleRecord, ...]
    probes: Probes | None = None
    ended: bool = True
    """False for a run that still goes on, or was interrupted."""

    @property
    def measured(self) -> tuple[SampleRecord, ...]:
        """Samples that enter the comparison."""
        return tuple(r for r in self.records if r.status == "ok" and not r.warmup)


@dataclass(frozen=True, kw_only=True, slots=True)
class SideFacts:
    """Identity of a run, and how far it can be trusted."""

    name: str
    run_id: str
    created: str
    model: str
    code: str
    """Version and commit that measured it."""
    valid: bool
    reasons: tuple[str, ...]
    """Reasons against it."""
    warnings: tuple[str, ...]
    """Warnings of its own verdict, such as noise and drift."""
    noise_spread_pct: float | None
    """Spread of repeats of one sample."""
    ended: bool
    """Whether it measured every sample."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageChange:
    """One stage of B against the stage of A."""

    stage: str
    samples: int
    """Number that both measured; for different samples, the number of the smaller run."""
    before_ms: float
    """Median of A, over the common samples if there are any."""
    after_ms: float
    """Median of B."""
    ratio: Ratio
    """B over A: the median of the samples' own ratios; for different samples, the ratio of medians."""
    pct: float
    """Change in %; more is slower."""
    word: Word


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """B against A."""

    protocol: str
    before: SideFacts
    after: SideFacts
    samples: int
    """Number that both measured; 0 for different samples."""
    work: Differences
    environment: Differences
    broken: tuple[str, ...]
    """Samples that A measured and on which B failed; they are in no stage's numbers."""
    stages: tuple[StageChange, ...]
    noise_threshold_pct: float
    """In force: if repeats of one sample spread by more than a run may, changes up to that spread are not called
    changes either."""

    def regressions(self, pct: float) -> tuple[StageChange, ...]:
        """Return the slower stages with a change of the median of at least ``pct`` %."""
        return tuple(each for each in self.stages if each.word == "slower" and each.pct >= pct)

    def unjudged(self) -> tuple[str, ...]:
        """Return why a slower stage could go unnoticed; empty for two complete runs of enough samples."""
        sides = {"A": self.before, "B": self.after}
        unfinished = [f"{letter} has not ended" for letter, side in sides.items() if not side.ended]
        most = max((each.samples for each in self.stages), default=0)
        few = [f"{most} samples; a difference is shown by {MIN_SAMPLES} at least"]
        return (*unfinished, *(few if most < MIN_SAMPLES else ()))

    def to_dict(self) -> dict[str, Any]:
        """Return the change for JSON."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}


def change_between(before: Side, after: Side, *, noise_threshold_pct: float = NOISE_THRESHOLD_PCT) -> Change:
    """Compare two runs of one protocol.

    Args:
        before: A.
        after: B.
        noise_threshold_pct: changes up to it are not called changes; raised if a run is noisier than it may be.

    Raises:
        InputError: they were measured under different protocols, or one measured nothing.
    """
    for letter, side in (("A", before), ("B", after)):
        if not side.measured:
            raise InputError(f"run {side.name} ({letter})", found="no measured sample", expected="at least one")
    protocol, other = before.manifest.protocol, after.manifest.protocol
    if protocol != other:
        raise InputError(
            "compare",
            found=f"protocols {protocol} (A) and {other} (B)",
            expected="two runs under one protocol",
            fix="measure both runs with one bench --protocol",
        )
    facts = [_facts(side, summarise(side.manifest, side.records, side.probes)) for side in (before, after)]
    spreads = [spread for each in facts if (spread := each.noise_spread_pct) is not None and spread > NOISE_PCT]
    threshold = max([noise_threshold_pct, *spreads])
    a, b = before.measured, after.measured
    changes = [_stage(a, b, name, ms, threshold) for name, ms in _rows(protocol).items()]
    return Change(
        protocol=protocol,
        before=facts[0],
        after=facts[1],
        samples=len({r.sample_id for r in a} & {r.sample_id for r in b}),
        work=work_differences((before.manifest, a), (after.manifest, b)),
        environment=environment_differences(before.manifest, after.manifest),
        broken=_broken(before, after),
        stages=tuple(each for each in changes if each is not None),
        noise_threshold_pct=threshold,
    )


def ratio_of(before: Mapping[str, float], after: Mapping[str, float]) -> Ratio | None:
    """Return ``after`` over ``before``, by sample id; None if there is nothing to divide.

    Samples in both give the median of their own ratios, so differences between samples are no noise.
    """
    if not before.keys() & after.keys():
        return ratio(after, before)
    ratios = np.array([after[name] / ms for name, ms in before.items() if name in after and ms > 0])
    if not len(ratios):
        return None
    low, high = median_interval(ratios) or (None, None)
    return Ratio(value=float(np.median(ratios)), low=low, high=high, paired=True)


def word_for(found: Ratio, noise_threshold_pct: float, samples: int) -> Word:
    """Return slower or faster if enough samples put the whole 95 % interval beyond the threshold."""
    most = 1 + noise_threshold_pct / 100
    if found.low is None or found.high is None or samples < MIN_SAMPLES:
        return "no difference shown"
    if found.low > most:
        return "slower"
    return "faster" if found.high < 1 / most else "no difference shown"


def _rows(protocol: str) -> dict[str, Callable[[SampleRecord], float | None]]:
    def row(stage: str) -> Callable[[SampleRecord], float | None]:
        return lambda record: stage_ms(record, stage, protocol)

    return {stage: row(stage) for stage in stage_names(protocol)} | {END_TO_END: lambda record: record.e2e_host_ms}


def _stage(
    a: tuple[SampleRecord, ...],
    b: tuple[SampleRecord, ...],
    stage: str,
    ms_of: Callable[[SampleRecord], float | None],
    threshold: float,
) -> StageChange | None:
    before, after = ({r.sample_id: ms for r in each if (ms := ms_of(r)) is not None} for each in (a, b))
    if common := before.keys() & after.keys():
        before, after = ({name: ms for name, ms in each.items() if name in common} for each in (before, after))
    found = ratio_of(before, after)
    if found is None:
        return None
    samples = min(len(before), len(after))
    return StageChange(
        stage=stage,
        samples=samples,
        before_ms=float(np.median(list(before.values()))),
        after_ms=float(np.median(list(after.values()))),
        ratio=found,
        pct=100 * (found.value - 1),
        word=word_for(found, threshold, samples),
    )


def _broken(before: Side, after: Side) -> tuple[str, ...]:
    failed = {r.sample_id for r in after.records if r.status == "failed"}
    return tuple(r.sample_id for r in before.measured if r.sample_id in failed)


def _facts(side: Side, summary: Summary) -> SideFacts:
    manifest = side.manifest
    code = manifest.environment.get("code_version")
    code = code if isinstance(code, Mapping) else {}
    commit = str(code.get("git_commit") or "")[:10] + ("+" if code.get("git_dirty") else "")
    return SideFacts(
        name=side.name,
        run_id=manifest.run_id,
        created=manifest.created,
        model=str(manifest.model.get("name")),
        code=f"{code.get('unfuse') or 'version unknown'} {commit}".strip(),
        valid=summary.verdict.valid,
        reasons=summary.verdict.reasons,
        warnings=summary.verdict.warnings,
        noise_spread_pct=summary.noise_spread_pct,
        ended=side.ended,
    )
