"""From records to what a report says: ``summary.json`` is this, and terminal and Markdown print it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from unfuse.report.claims import claimed_llm, claimed_vision, unsynchronised_vision
from unfuse.report.energy import EnergySummary, energy_summary
from unfuse.report.isolation import isolation_findings, unseen_rules
from unfuse.report.quality import Quality, quality
from unfuse.report.roofline import Position, roofline
from unfuse.report.statistics import (
    Balance,
    Distribution,
    Drift,
    LineFit,
    balance,
    distribution,
    drift,
    line_fit,
    outliers,
    spread_pct,
    why_no_line,
)
from unfuse.report.verdict import (
    Verdict,
    balance_warnings,
    drift_warnings,
    first_warnings,
    noise_warnings,
    protocol_reasons,
    reasons_against,
)
from unfuse.runs.schema import (
    PROTOCOL_STAGES,
    SCHEMA_VERSION,
    Ceilings,
    Manifest,
    Noise,
    Probes,
    Profile,
    SampleRecord,
    StageMemory,
)

FORMULAS: Final = {
    "ttft": "load + preprocess + encode + prefill",
    "tpot": "decode / (output_tokens - 1)",
    "e2e": "one unstaged call, measured apart",
    "share": "mean of the stage / mean of the sum of stages",
    "remainder": "(e2e - sum of stages) / e2e",
    "LLM to vision": "mean of Stage 4 / mean of Stage 3",
    "J a decoded token": "energy of decode / (output_tokens - 1)",
    "cost a token": "slope of Stage 4 over output tokens, one point a sample; the fixed cost is its intercept",
    "roofline": "least time at the measured ceilings / time, of one sample",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """One failed sample."""

    sample_id: str
    error: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """One model's run in numbers. Warm-up repeats and failed samples enter no distribution."""

    protocol: str
    num_ok: int
    num_failed: int
    num_warmups: int
    warmup_total_ms: tuple[float, ...]
    """Sum of stages of every warm-up repeat, in order: the cold ones are among them."""
    failures: tuple[Failure, ...]
    stages_host: Mapping[str, Distribution | None]
    stages_device: Mapping[str, Distribution | None]
    spans_host: Mapping[str, Distribution | None]
    shares_pct: Mapping[str, float]
    spans_device: Mapping[str, Distribution | None]
    vision: Distribution | None
    """Stage 3 of the 4-stage view, as the protocol claims it (see ``claims``)."""
    generate: Distribution | None
    """Stage 4 of the 4-stage view, as the protocol claims it; under ``decoupled``, prefill + decode."""
    unsynchronised_vision: Distribution | None
    """Under ``hooked``: what its hooks would say without synchronisation."""
    total: Distribution | None
    e2e: Distribution | None
    ttft: Distribution | None
    tpot: Distribution | None
    text_tokens: Distribution | None
    media_tokens: Distribution | None
    output_tokens: Distribution | None
    reused_prefix_tokens: int
    llm_to_vision: float | None
    samples_per_s: float | None
    output_tokens_per_s: float | None
    outside_stages_pct: float | None
    """Of the staged run itself, the time between its stages."""
    balance: Balance
    clock_overhead_pct: float | None
    clock_overhead_how: str
    noise_spread_pct: float | None
    memory: Mapping[str, StageMemory]
    memory_source: str | None
    ceilings: Ceilings | None
    roofline: Mapping[str, Position]
    """Of one sample, by stage."""
    energy: EnergySummary
    """Of one sample."""
    disturbances: tuple[str, ...]
    """What kept the run from having the machine to itself."""
    isolation_unseen: Mapping[str, str] | None
    """Rules of isolation that could not be looked at, and why; None where nothing was looked at."""
    profile: Profile | None
    drifts: Mapping[str, Drift | None]
    stage4_fit: LineFit | None
    """Stage 4 in ms against output tokens: the slope is the cost of a token, the intercept what any answer costs."""
    stage4_fit_missing: str | None
    """Why there is none."""
    quality: Quality | None
    """Of the answers; None without reference answers that can be judged, or where all were made equally long."""
    notes: tuple[str, ...]
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """For ``summary.json``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "formulas": dict(FORMULAS),
            **asdict(self),
            "verdict": {"word": self.verdict.word, **asdict(self.verdict)},
        }


def summarise(
    manifest: Manifest, records: Sequence[SampleRecord], probes: Probes | None, extra_reasons: Sequence[str] = ()
) -> Summary:
    """Summarises one run.

    Args:
        manifest: of the run.
        records: all lines, warm-up among them.
        probes: what was measured beside the samples.
        extra_reasons: what else is held against the run.
    """
    probes = probes or Probes()
    noise, protocol = probes.noise, manifest.protocol
    stages = PROTOCOL_STAGES[protocol]
    warm = [r for r in records if r.warmup and r.status == "ok"]
    measured = [r for r in records if not r.warmup]
    ok = [r for r in measured if r.status == "ok"]
    totals = [r.total_host_ms for r in ok]
    vision = _known(claimed_vision(r, protocol) for r in ok)
    generate = _known(claimed_llm(r, protocol) for r in ok)
    tokens = [r.output_tokens or 0 for r in ok]
    found = balance(_pairs(ok, noise))
    fit, no_fit = _stage4_fit(ok, protocol)
    spread = spread_pct(noise.total_host_ms) if noise else None
    drifts = {name: drift([r.stages[name].host_ms for r in ok]) for name in stages} | {"total": drift(totals)}
    overhead, how = _clock_overhead(manifest, ok, len(stages))
    warnings = noise_warnings(spread, outliers(noise.total_host_ms) if noise else 0)
    warnings += balance_warnings(found) + first_warnings(totals)
    num_samples = int(manifest.dataset.get("num_samples", 0))
    for name, found_drift in drifts.items():
        warnings += drift_warnings(name, found_drift)
    disturbances = isolation_findings(manifest, records, probes)
    strict = disturbances if manifest.config.get("strict") else ()
    warnings += () if strict else disturbances
    reasons = (
        *extra_reasons,
        *strict,
        *protocol_reasons(protocol, probes, ok),
        *reasons_against(measured, found, num_samples),
    )
    cut = protocol == "decoupled"
    return Summary(
        protocol=protocol,
        num_ok=len(ok),
        num_failed=len(measured) - len(ok),
        num_warmups=len(warm),
        warmup_total_ms=tuple(r.total_host_ms for r in warm),
        failures=tuple(
            Failure(sample_id=r.sample_id, error=r.error or "unknown") for r in measured if r.status == "failed"
        ),
        stages_host={stage: distribution([r.stages[stage].host_ms for r in ok], "ms") for stage in stages},
        stages_device={stage: distribution(_device(ok, stage), "ms") for stage in stages},
        spans_host=_spans(ok, "host_ms"),
        spans_device=_spans(ok, "device_ms"),
        shares_pct={s: 100 * sum(r.stages[s].host_ms for r in ok) / sum(totals) for s in stages} if ok else {},
        vision=distribution(vision, "ms"),
        generate=distribution(generate, "ms"),
        unsynchronised_vision=distribution(_known(unsynchronised_vision(r) for r in ok), "ms"),
        total=distribution(totals, "ms"),
        e2e=distribution(_known(r.e2e_host_ms for r in ok), "ms"),
        ttft=distribution([r.total_host_ms - r.stages["decode"].host_ms for r in ok] if cut else [], "ms"),
        tpot=distribution(
            [r.stages["decode"].host_ms / (n - 1) for r, n in zip(ok, tokens, strict=True) if n > 1] if cut else [],
            "ms",
        ),
        text_tokens=distribution([r.text_tokens or 0 for r in ok], "tokens"),
        media_tokens=distribution([r.media_tokens or 0 for r in ok], "tokens"),
        output_tokens=distribution(tokens, "tokens"),
        reused_prefix_tokens=sum(r.reused_prefix_tokens or 0 for r in ok),
        llm_to_vision=sum(generate) / sum(vision) if generate and sum(vision) else None,
        samples_per_s=1000 * len(ok) / sum(totals) if ok else None,
        output_tokens_per_s=1000 * sum(tokens) / sum(totals) if ok else None,
        outside_stages_pct=_outside(ok),
        balance=found,
        clock_overhead_pct=overhead,
        clock_overhead_how=how,
        noise_spread_pct=spread,
        memory=probes.memory,
        memory_source=probes.memory_source,
        ceilings=probes.ceilings,
        roofline=roofline(probes, ok),
        energy=energy_summary(probes),
        disturbances=disturbances,
        isolation_unseen=unseen_rules(manifest, probes),
        profile=probes.profile,
        drifts=drifts,
        stage4_fit=fit,
        stage4_fit_missing=no_fit,
        quality=_quality(manifest, ok),
        notes=tuple(dict.fromkeys(note for r in measured for note in r.notes)),
        verdict=Verdict(reasons=reasons, warnings=warnings),
    )


def _quality(manifest: Manifest, records: Sequence[SampleRecord]) -> Quality | None:
    if manifest.config.get("output_length") is not None:
        return None  # an answer that may not end where it would is not the model's answer
    return quality((r.reference, r.text) for r in records if r.reference is not None and r.text is not None)


def stage4_points(records: Iterable[SampleRecord], protocol: str) -> list[tuple[int, float]]:
    """(output tokens, host ms of Stage 4) of every sample whose Stage 4 the protocol knows."""
    claims = ((r.output_tokens or 0, claimed_llm(r, protocol)) for r in records)
    return [(tokens, ms) for tokens, ms in claims if ms is not None]


def _stage4_fit(records: Sequence[SampleRecord], protocol: str) -> tuple[LineFit | None, str | None]:
    if protocol == "fused":
        return None, "protocol fused has no Stage 4 of its own"
    points = stage4_points(records, protocol)
    tokens = [float(n) for n, _ in points]
    fit = line_fit(tokens, [ms for _, ms in points])
    return fit, None if fit else why_no_line(tokens, "output tokens")


def _pairs(records: Sequence[SampleRecord], noise: Noise | None) -> list[tuple[float, float]]:
    pairs = [(r.total_host_ms, r.e2e_host_ms) for r in records if r.e2e_host_ms]
    if noise is not None:
        pairs += list(zip(noise.total_host_ms, noise.e2e_host_ms, strict=False))
        pairs += list(zip(noise.short_total_host_ms, noise.short_e2e_host_ms, strict=True))
    return pairs


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _device(records: Sequence[SampleRecord], stage: str) -> list[float]:
    return [ms for r in records if (ms := r.stages[stage].device_ms) is not None]


def _spans(records: Sequence[SampleRecord], clock: str) -> dict[str, Distribution | None]:
    names = dict.fromkeys(name for r in records for name in r.spans)
    return {
        name: distribution(_known(getattr(r.spans[name], clock) for r in records if name in r.spans), "ms")
        for name in names
    }


def _outside(records: Sequence[SampleRecord]) -> float | None:
    gaps = [100 * (r.staged_host_ms - r.total_host_ms) / r.staged_host_ms for r in records if r.staged_host_ms]
    found = distribution(gaps, "%")
    return found.p50 if found else None


def _clock_overhead(manifest: Manifest, records: Sequence[SampleRecord], edges: int) -> tuple[float | None, str]:
    """What the clock's edges add to a run, in % of it."""
    total = distribution([r.total_host_ms for r in records], "ms")
    if total is None:
        return None, "nothing measured"
    if str(manifest.model.get("device", "")).startswith("cuda"):
        pairs = [(r.staged_host_ms, r.e2e_host_ms) for r in records if r.staged_host_ms and r.e2e_host_ms]
        gaps = distribution([100 * (staged - whole) / whole for staged, whole in pairs], "%")
        return (gaps.p50 if gaps else None), "median of runs with edges against runs without, in pairs"
    cost = manifest.clock.get("edge_cost_ms")
    if cost is None:
        return None, "not calibrated"
    return 100 * edges * float(cost) / total.p50, "calibrated empty stages against the median total"
