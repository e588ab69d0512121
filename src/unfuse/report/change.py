"""Two runs, before and after: how every stage has changed, and whether that is more than noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np

from unfuse.errors import InputError
from unfuse.report.comparison import Part, compare, stage_ms, stage_names
from unfuse.report.statistics import Ratio, median_interval, ratio
from unfuse.report.text import printable
from unfuse.runs.schema import SCHEMA_VERSION, Manifest, SampleRecord

Word = Literal["faster", "slower", "no difference shown"]
NOISE_THRESHOLD_PCT: Final = 1.0
"""Least change that is called one. Resampling sees the noise within runs; two runs of one program differ by more."""
_BEFORE, _AFTER = "A", "B"
_PASSING: Final = ("uuid", "power.draw", "temperature", "utilization", "clocks.current", "memory.used", "pstate")
"""State of a GPU that is never the same twice."""
_MACHINE: Final = ("cpu", "cpu_cores", "device_name", "code_version", "packages", "cuda")


@dataclass(frozen=True, kw_only=True, slots=True)
class StageChange:
    """One stage of B against the same of A."""

    stage: str
    before_ms: float
    """Median of A."""
    after_ms: float
    """Median of B."""
    ratio: Ratio
    """B over A: the median of the samples' own ratios where both runs measured them, else the ratio of medians."""
    word: Word

    @property
    def pct(self) -> float:
        """Change in %; more is slower."""
        return 100 * (self.ratio.value - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """B against A."""

    protocol: str
    samples: int
    """That both measured; 0 where their samples are others."""
    work: Mapping[str, tuple[str, str]]
    """What was not the same work, by what it is: in A and in B."""
    environment: Mapping[str, tuple[str, str]]
    """The same of machine, packages and code."""
    stages: tuple[StageChange, ...]
    noise_threshold_pct: float

    def regressions(self, pct: float) -> tuple[StageChange, ...]:
        """Stages shown to be slower, by at least so much."""
        return tuple(each for each in self.stages if each.word == "slower" and each.pct >= pct)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}


def change_between(
    before: tuple[Manifest, Sequence[SampleRecord]],
    after: tuple[Manifest, Sequence[SampleRecord]],
    *,
    noise_threshold_pct: float = NOISE_THRESHOLD_PCT,
) -> Change:
    """Compares two runs of one protocol.

    Args:
        before: A, with all its records.
        after: B.
        noise_threshold_pct: changes below it are not called changes.

    Raises:
        InputError: they were measured under different protocols, or one measured nothing.
    """
    parts = []
    for name, (manifest, records) in ((_BEFORE, before), (_AFTER, after)):
        part = Part(model=name, protocol=manifest.protocol, manifest=manifest, records=tuple(records))
        if not part.measured:
            raise InputError(f"run {manifest.run_id} ({name})", found="no measured sample", expected="at least one")
        parts.append(part)
    a, b = parts
    if a.protocol != b.protocol:
        raise InputError(
            "compare",
            found=f"protocols {a.protocol} (A) and {b.protocol} (B)",
            expected="two runs under one protocol",
            fix="bench --protocol",
        )
    common = {r.sample_id for r in a.measured} & {r.sample_id for r in b.measured}
    work = {each.what: (each.values[_BEFORE], each.values[_AFTER]) for each in compare(parts).differences}
    changes = (_stage(a, b, stage, noise_threshold_pct) for stage in stage_names(a.protocol))
    return Change(
        protocol=a.protocol,
        samples=len(common),
        work=work,
        environment=_environment(before[0], after[0]),
        stages=tuple(each for each in changes if each is not None),
        noise_threshold_pct=noise_threshold_pct,
    )


def ratio_of(before: Mapping[str, float], after: Mapping[str, float]) -> Ratio | None:
    """``after`` over ``before``, by sample id; None where there is nothing to divide.

    Of samples in both, the median of their own ratios, so that what differs between samples is no noise.
    """
    common = [name for name in before if name in after and before[name] > 0]
    if not common:
        return ratio(after, before)
    ratios = np.array([after[name] / before[name] for name in common])
    low, high = median_interval(ratios) or (None, None)
    return Ratio(value=float(np.median(ratios)), low=low, high=high, paired=True)


def word_for(found: Ratio, noise_threshold_pct: float) -> Word:
    """Slower or faster where the whole 95 % interval says so and the change is above the threshold."""
    least = 1 + noise_threshold_pct / 100
    if found.low is not None and found.low > 1 and found.value >= least:
        return "slower"
    if found.high is not None and found.high < 1 and found.value <= 1 / least:
        return "faster"
    return "no difference shown"


def _stage(a: Part, b: Part, stage: str, threshold: float) -> StageChange | None:
    before, after = ({r.sample_id: stage_ms(r, stage, p.protocol) for r in p.measured} for p in (a, b))
    found = ratio_of(before, after)
    if found is None:
        return None
    return StageChange(
        stage=stage,
        before_ms=float(np.median(list(before.values()))),
        after_ms=float(np.median(list(after.values()))),
        ratio=found,
        word=word_for(found, threshold),
    )


def _environment(before: Manifest, after: Manifest) -> dict[str, tuple[str, str]]:
    one, other = (dict(_flat("", {k: m.environment.get(k) for k in _MACHINE})) for m in (before, after))
    one |= {"model": str(before.model.get("name")), "weights": str(before.model.get("fingerprint"))[:12]}
    other |= {"model": str(after.model.get("name")), "weights": str(after.model.get("fingerprint"))[:12]}
    names = dict.fromkeys([*one, *other])
    return {n: (one.get(n, "-"), other.get(n, "-")) for n in names if one.get(n) != other.get(n)}


def _flat(name: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [leaf for key, item in value.items() for leaf in _flat(f"{name}.{key}" if name else str(key), item)]
    passing = value is None or any(f".state.{kind}" in name for kind in _PASSING)
    return [] if passing else [(name, printable(str(value)))]
