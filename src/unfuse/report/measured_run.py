"""One run's records, sorted by use, and the quantities that both its verdict and its summary need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from unfuse.records.schema import PROTOCOL_STAGES, Manifest, Noise, Probes, SampleRecord, StageTime
from unfuse.report.claims import claimed_llm, claimed_vision
from unfuse.report.isolation import isolation_findings
from unfuse.report.price import PriceSummary, price_summary
from unfuse.report.statistics import Balance, Distribution, Drift, balance, distribution, drift, spread_pct


@dataclass(frozen=True, kw_only=True)
class MeasuredRun:
    """A run's files. Warm-up repeats and failed samples are in no quantity."""

    manifest: Manifest
    records: Sequence[SampleRecord]
    """All lines, warm-up among them."""
    probes: Probes
    """Measurements beside the samples."""

    @property
    def protocol(self) -> str:
        """Name of the protocol."""
        return self.manifest.protocol

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the protocol's stages."""
        return PROTOCOL_STAGES[self.protocol]

    @cached_property
    def samples(self) -> list[SampleRecord]:
        """Samples, failed ones among them."""
        return [r for r in self.records if not r.warmup]

    @cached_property
    def ok(self) -> list[SampleRecord]:
        """Samples that were measured."""
        return [r for r in self.samples if r.status == "ok"]

    @cached_property
    def failed(self) -> list[SampleRecord]:
        """Samples that failed."""
        return [r for r in self.samples if r.status == "failed"]

    @cached_property
    def total_ms(self) -> list[float]:
        """Sum of stages of each measured sample."""
        return [r.total_host_ms for r in self.ok]

    @cached_property
    def vision_ms(self) -> list[float]:
        """Stage 3 of the 4-stage view, as the protocol claims it."""
        return self.values(lambda r: claimed_vision(r, self.protocol))

    @cached_property
    def generate_ms(self) -> list[float]:
        """Stage 4 of the 4-stage view, as the protocol claims it."""
        return self.values(lambda r: claimed_llm(r, self.protocol))

    @cached_property
    def balance(self) -> Balance:
        """End-to-end time outside of the stages, over samples and repeats."""
        pairs = [(r.total_host_ms, r.e2e_host_ms) for r in self.ok if r.e2e_host_ms]
        return balance([*pairs, *_repeated(self.probes.noise)])

    @cached_property
    def price(self) -> PriceSummary:
        """Times of the stages against those of whole calls."""
        return price_summary(self.probes.price, str(self.manifest.model.get("engine")))

    @cached_property
    def noise_spread_pct(self) -> float | None:
        """Spread of repeats of one sample."""
        return spread_pct(self.probes.noise.total_host_ms) if self.probes.noise else None

    @cached_property
    def drifts(self) -> Mapping[str, Drift | None]:
        """Drift of each stage and of their sum (``total``)."""
        found = {stage: drift([r.stages[stage].host_ms for r in self.ok]) for stage in self.stages}
        return found | {"total": drift(self.total_ms)}

    @cached_property
    def disturbances(self) -> tuple[str, ...]:
        """Other work that was seen on the machine."""
        return isolation_findings(self.manifest, self.records, self.probes)

    def values(self, value: Callable[[SampleRecord], float | None]) -> list[float]:
        """Return a value of every measured sample that has it."""
        return _without_none(map(value, self.ok))

    def distribution(self, value: Callable[[SampleRecord], float | None], unit: str = "ms") -> Distribution | None:
        """Summarise a value over the measured samples that have it."""
        return distribution(self.values(value), unit)

    def stage_distributions(self, ms: Callable[[StageTime], float | None]) -> dict[str, Distribution | None]:
        """Summarise the time of each stage, by one clock."""
        return {stage: distribution(_without_none(ms(r.stages[stage]) for r in self.ok), "ms") for stage in self.stages}

    def span_distributions(self, ms: Callable[[StageTime], float | None]) -> dict[str, Distribution | None]:
        """Summarise the time of each sub-span, by one clock, over the samples that have the sub-span."""
        names = dict.fromkeys(name for r in self.ok for name in r.spans)
        return {
            name: distribution(_without_none(ms(r.spans[name]) for r in self.ok if name in r.spans), "ms")
            for name in names
        }


def _without_none(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _repeated(noise: Noise | None) -> Iterable[tuple[float, float]]:
    """Return (sum of stages, end to end) of the repeats; short repeats of older runs hide a fault of long answers."""
    return () if noise is None else zip(noise.total_host_ms, noise.e2e_host_ms, strict=False)
