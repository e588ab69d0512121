"""What is measured beside the samples, after them, on one or a few of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from unfuse.measure.ceilings import measure_ceilings
from unfuse.measure.isolation import IsolationGuard
from unfuse.measure.memory import MemoryClock, memory_meter
from unfuse.measure.timers import timer_for
from unfuse.protocols.energy import stage_energy
from unfuse.protocols.pairs import Pairs
from unfuse.protocols.profiling import profile_sample
from unfuse.protocols.protocol import BenchProtocol
from unfuse.protocols.settings import BenchSettings
from unfuse.protocols.steps import step_passes, typical_samples
from unfuse.runs import RunFolder
from unfuse.runs.schema import Probes, Profile, SampleRecord, StageMemory
from unfuse.samples import Dataset, Sample
from unfuse.staged_model import StagedModel

_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Prober:
    """What is measured after the samples, on one or a few of them."""

    pairs: Pairs
    model: StagedModel
    dataset: Dataset
    settings: BenchSettings
    guard: IsolationGuard

    def probes(self, records: list[SampleRecord], folder: RunFolder | None) -> Probes:
        """Everything, in an order in which what is timed comes first and what disturbs comes last."""
        typical = typical_samples(records)
        if not typical:
            return Probes(isolation=self.guard.look())
        protocol, model, settings = self.pairs.protocol, self.model, self.settings
        first, middle = self._first(records), self._named(typical[0])
        noise = self.pairs.noise(first) if settings.noise_repeats else None
        memory, source = stage_memory(protocol, model, first, settings)
        staged_vision = protocol.name in ("decoupled", "reencode")
        calls = calls_after_encode(protocol, model, first, settings) if staged_vision else None
        timer, meter = timer_for(model.device), memory_meter(model.device)
        again = [self._named(name) for name in typical]
        steps = step_passes(protocol, model, again, settings, timer, self.pairs.zero_ns, meter)
        energy = stage_energy(protocol.name, model, middle, settings, self.guard.gpu, timer)
        probes = Probes(
            noise=noise,
            memory=memory,
            memory_source=source,
            encoder_calls_after_encode=calls,
            steps=steps,
            energy=energy,
            isolation=self.guard.look(),
        )
        if protocol.name == "decoupled":
            from unfuse.protocols.work import stage_work  # imports torch, which waits until the input is checked

            tokens = next(record.output_tokens for record in records if _is(record, typical[0]))
            probes = replace(
                probes,
                work=stage_work(model, middle, tokens or 0),
                work_sample_id=middle.sample_id,
                ceilings=measure_ceilings(model.device, model.dtype),
            )
        if settings.profile:
            probes = replace(probes, profile=self._profile(middle, folder))
        return probes

    def _profile(self, sample: Sample, folder: RunFolder | None) -> Profile:
        if folder is None:
            return Profile(reason="the run has no folder to keep it in")
        about, text = profile_sample(self.pairs.protocol, self.model, sample, self.settings)
        if text is not None:
            folder.write_profile(text)
        return about

    def _first(self, records: list[SampleRecord]) -> Sample:
        ok = {record.sample_id for record in records if record.status == "ok"}
        return next(sample for sample in self.dataset.samples if sample.sample_id in ok)

    def _named(self, sample_id: str) -> Sample:
        return next(sample for sample in self.dataset.samples if sample.sample_id == sample_id)


def _is(record: SampleRecord, sample_id: str) -> bool:
    return record.sample_id == sample_id and record.status == "ok" and not record.warmup


def stage_memory(
    protocol: BenchProtocol, model: StagedModel, sample: Sample, settings: BenchSettings
) -> tuple[dict[str, StageMemory], str | None]:
    """Memory by stage, and whose count it is; nothing where the system offers none."""
    meter = memory_meter(model.device)
    if meter is None:
        return {}, None
    clock = MemoryClock(meter)
    protocol.staged(model, sample, clock, settings, settings.token_limit)
    return clock.stages, meter.source


@dataclass(slots=True)
class _CallCounter:
    """In the place of a clock: counts calls of the vision side after the stage ``encode``."""

    after_encode: int = 0
    encoded: bool = False
    _stage: str = ""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Remembers which stage runs."""
        self._stage = name
        yield
        self.encoded = self.encoded or name == "encode"

    def count(self, *_: object) -> None:
        """A hook."""
        if self.encoded and self._stage != "encode":
            self.after_encode += 1


def calls_after_encode(
    protocol: BenchProtocol, model: StagedModel, sample: Sample, settings: BenchSettings
) -> int | None:
    """Calls of vision modules after Stage 3 had ended; None where the protocol has no Stage 3 of its own."""
    counter = _CallCounter()
    modules = model.adapter.vision_modules().values()
    handles = [module.register_forward_pre_hook(counter.count) for module in modules]
    try:
        protocol.staged(model, sample, counter, settings, _TOKENS)
    finally:
        for handle in handles:
            handle.remove()
    return counter.after_encode if counter.encoded else None
