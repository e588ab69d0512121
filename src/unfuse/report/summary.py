"""Summary of a run: ``summary.json`` holds it, and every report prints it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final, NamedTuple

from unfuse.records.schema import SCHEMA_VERSION, Manifest, Probes, Profile, SampleRecord, StageMemory
from unfuse.records.work_records import Ceilings
from unfuse.report.claims import claimed_llm, unsynchronised_vision
from unfuse.report.energy import EnergySummary, energy_summary
from unfuse.report.isolation import unseen_rules
from unfuse.report.measured_run import MeasuredRun
from unfuse.report.price import PriceSummary
from unfuse.report.quality import Quality, quality
from unfuse.report.roofline import Position, roofline
from unfuse.report.rules import judge
from unfuse.report.speculation import SpeculationSummary, speculation_summary
from unfuse.report.statistics import Balance, Distribution, Drift, LineFit, distribution, line_fit, why_no_line
from unfuse.report.verdict import Verdict
from unfuse.unavailable import Unavailable

FORMULAS: Final = {
    "ttft": "load + preprocess + encode + prefill",
    "tpot": "decode / (output_tokens - 1)",
    "e2e": "one unstaged call, measured separately",
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
    """Under ``hooked``, the time of its hooks without synchronisation."""
    total: Distribution | None
    e2e: Distribution | None
    ttft: Distribution | None
    tpot: Distribution | None
    text_tokens: Distribution | None
    media_tokens: Distribution | None
    output_tokens: Distribution | None
    reused_prefix_tokens: int
    speculation: SpeculationSummary | None
    """Drafted and accepted tokens; None without speculation."""
    llm_to_vision: float | None
    samples_per_s: float | None
    output_tokens_per_s: float | None
    outside_stages_pct: float | None
    """Time between the stages of the staged run."""
    balance: Balance
    price: PriceSummary
    """Times of the stages against those of whole calls."""
    clock_overhead_pct: float | None
    clock_overhead_how: str
    noise_spread_pct: float | None
    memory: Mapping[str, StageMemory]
    memory_source: str | None
    ceilings: Ceilings | None
    roofline: Mapping[str, Position]
    """Positions of one sample, by stage."""
    energy: EnergySummary
    """Energy of one sample."""
    disturbances: tuple[str, ...]
    """Other work on the machine during the run."""
    isolation_unseen: Mapping[str, str] | None
    """Rules of isolation that could not be evaluated, with reasons; None where none was."""
    profile: Profile | None
    drifts: Mapping[str, Drift | None]
    stage4_fit: LineFit | None
    """Line of Stage 4 in ms over output tokens: the slope is the cost of a token, the intercept the fixed cost."""
    stage4_fit_missing: str | None
    """Reason why there is no line."""
    quality: Quality | None
    """Accuracy of the answers; None without reference answers, or where all answers have a forced length."""
    notes: tuple[str, ...]
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """Return the summary for ``summary.json``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "formulas": dict(FORMULAS),
            **asdict(self),
            "verdict": asdict(self.verdict.record),
        }


def summarise(manifest: Manifest, records: Sequence[SampleRecord], probes: Probes | None) -> Summary:
    """Summarise one run.

    Args:
        manifest: of the run.
        records: all lines, warm-up among them.
        probes: measurements beside the samples.
    """
    probes = probes or Probes()
    run = MeasuredRun(manifest=manifest, records=records, probes=probes)
    warmups = tuple(r.total_host_ms for r in records if r.warmup and r.status == "ok")
    fit = _stage4_fit(run)
    clock = _clock_overhead(run)
    return Summary(
        protocol=run.protocol,
        num_ok=len(run.ok),
        num_failed=len(run.samples) - len(run.ok),
        num_warmups=len(warmups),
        warmup_total_ms=warmups,
        failures=tuple(Failure(sample_id=r.sample_id, error=r.error or "unknown") for r in run.failed),
        stages_host=run.stage_distributions(lambda time: time.host_ms),
        stages_device=run.stage_distributions(lambda time: time.device_ms),
        spans_host=run.span_distributions(lambda time: time.host_ms),
        spans_device=run.span_distributions(lambda time: time.device_ms),
        shares_pct=_shares(run),
        vision=distribution(run.vision_ms, "ms"),
        generate=distribution(run.generate_ms, "ms"),
        unsynchronised_vision=run.distribution(unsynchronised_vision),
        total=distribution(run.total_ms, "ms"),
        e2e=run.distribution(lambda r: r.e2e_host_ms),
        ttft=run.distribution(_ttft),
        tpot=run.distribution(_tpot),
        text_tokens=run.distribution(lambda r: r.text_tokens or 0, "tokens"),
        media_tokens=run.distribution(lambda r: r.media_tokens or 0, "tokens"),
        output_tokens=run.distribution(lambda r: r.output_tokens or 0, "tokens"),
        reused_prefix_tokens=sum(r.reused_prefix_tokens or 0 for r in run.ok),
        speculation=speculation_summary(run.ok),
        llm_to_vision=_ratio(sum(run.generate_ms), sum(run.vision_ms)),
        samples_per_s=_ratio(1000 * len(run.ok), sum(run.total_ms)),
        output_tokens_per_s=_ratio(1000 * sum(r.output_tokens or 0 for r in run.ok), sum(run.total_ms)),
        outside_stages_pct=_outside_stages(run),
        balance=run.balance,
        price=run.price,
        clock_overhead_pct=clock.pct,
        clock_overhead_how=clock.how,
        noise_spread_pct=run.noise_spread_pct,
        memory=probes.memory,
        memory_source=probes.memory_source,
        ceilings=probes.ceilings,
        roofline=roofline(probes, run.ok),
        energy=energy_summary(probes),
        disturbances=run.disturbances,
        isolation_unseen=unseen_rules(manifest, probes),
        profile=probes.profile,
        drifts=run.drifts,
        stage4_fit=None if isinstance(fit, Unavailable) else fit,
        stage4_fit_missing=fit.reason if isinstance(fit, Unavailable) else None,
        quality=_quality(run),
        notes=tuple(dict.fromkeys(note for r in run.samples for note in r.notes)),
        verdict=judge(run),
    )


def _ttft(record: SampleRecord) -> float | None:
    decode = record.stages.get("decode")
    return None if decode is None else record.total_host_ms - decode.host_ms


def _tpot(record: SampleRecord) -> float | None:
    decode, tokens = record.stages.get("decode"), record.output_tokens or 0
    return None if decode is None or tokens < 2 else decode.host_ms / (tokens - 1)


def _shares(run: MeasuredRun) -> dict[str, float]:
    """Return the share of each stage in the sum of stages."""
    if not run.ok:
        return {}
    whole = sum(run.total_ms)
    return {stage: 100 * sum(r.stages[stage].host_ms for r in run.ok) / whole for stage in run.stages}


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _quality(run: MeasuredRun) -> Quality | None:
    if run.manifest.config.get("output_length") is not None:
        return None  # an answer of forced length is not the model's own answer
    return quality((r.reference, r.text) for r in run.ok if r.reference is not None and r.text is not None)


def stage4_points(records: Iterable[SampleRecord], protocol: str) -> list[tuple[int, float]]:
    """Return (output tokens, host ms of Stage 4) of every sample that the protocol claims Stage 4 for."""
    claims = ((r.output_tokens or 0, claimed_llm(r, protocol)) for r in records)
    return [(tokens, ms) for tokens, ms in claims if ms is not None]


def _stage4_fit(run: MeasuredRun) -> LineFit | Unavailable:
    if run.protocol == "fused":
        return Unavailable("protocol fused has no Stage 4 of its own")
    points = stage4_points(run.ok, run.protocol)
    tokens = [float(n) for n, _ in points]
    return line_fit(tokens, [ms for _, ms in points]) or Unavailable(why_no_line(tokens, "output tokens"))


def _outside_stages(run: MeasuredRun) -> float | None:
    """Return the median share of the staged run spent between its stages, in %."""

    def share(record: SampleRecord) -> float | None:
        staged = record.staged_host_ms
        return 100 * (staged - record.total_host_ms) / staged if staged else None

    found = run.distribution(share, "%")
    return found.p50 if found else None


class _ClockOverhead(NamedTuple):
    """Time that the clock's edges add to a run, in % of it."""

    pct: float | None
    how: str


def _clock_overhead(run: MeasuredRun) -> _ClockOverhead:
    if not run.ok:
        return _ClockOverhead(None, "nothing measured")
    if str(run.manifest.model.get("device", "")).startswith("cuda"):
        gaps = run.distribution(_edge_cost_pct, "%")
        how = "median of runs with edges against runs without, in pairs"
        return _ClockOverhead(gaps.p50 if gaps else None, how)
    cost = run.manifest.clock.get("edge_cost_ms")
    if cost is None:
        return _ClockOverhead(None, "not calibrated")
    pct = 100 * len(run.stages) * float(cost) / median(run.total_ms)
    return _ClockOverhead(pct, "calibrated empty stages against the median total")


def _edge_cost_pct(record: SampleRecord) -> float | None:
    staged, whole = record.staged_host_ms, record.e2e_host_ms
    return 100 * (staged - whole) / whole if staged and whole else None
