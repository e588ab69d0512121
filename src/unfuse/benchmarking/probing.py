"""Measure memory, encoder calls, token steps, energy, work and a profile after the samples, on one or a few of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from unfuse.benchmarking.energy import stage_energy
from unfuse.benchmarking.pairs import Pairs
from unfuse.benchmarking.price import price_of
from unfuse.benchmarking.profiling import profile_sample
from unfuse.benchmarking.setup import FAILURES, BenchSetup
from unfuse.benchmarking.steps import step_passes, typical_samples
from unfuse.measure.ceilings import measure_ceilings
from unfuse.measure.isolation import IsolationGuard
from unfuse.measure.memory import MemoryClock, memory_meter
from unfuse.records import RunFolder
from unfuse.records.run_dir import PROFILE_FILE
from unfuse.records.schema import Probes, Profile, SampleRecord, StageMemory
from unfuse.records.work_records import CountedWork
from unfuse.samples import Dataset, Sample
from unfuse.staged_model import StagedModel

_TOKENS: Final = 4
"""New tokens of the run that counts encoder calls."""


@dataclass(frozen=True, slots=True)
class Prober:
    """Measures quantities that need no statistic, after the samples."""

    pairs: Pairs
    dataset: Dataset
    guard: IsolationGuard

    def probes(self, records: list[SampleRecord], folder: RunFolder | None) -> Probes:
        """Measure timed probes first and disturbing ones last."""
        typical = typical_samples(records)
        if not typical:
            return Probes(isolation=self.guard.check())
        setup = self.pairs.setup
        protocol, model, settings = setup.protocol.name, setup.model, setup.settings
        first, median = self._first(records), self._sample(typical[0])
        noise = self.pairs.noise(first) if settings.noise_repeats else None
        memory, source = stage_memory(setup, first)
        calls = calls_after_encode(setup, first) if protocol in ("decoupled", "reencode") else None
        steps = step_passes(setup, [self._sample(name) for name in typical], memory_meter(model.device))
        from unfuse.benchmarking.reuse import reuse_of  # imports torch, so it waits until the input is checked

        reuse = reuse_of(setup, first)
        energy = stage_energy(setup, median, self.guard.gpu)
        probes = Probes(
            noise=noise,
            memory=memory,
            memory_source=source,
            encoder_calls_after_encode=calls,
            steps=steps,
            energy=energy,
            reuse=reuse,
            isolation=self.guard.check(),
        )
        if protocol == "decoupled":
            from unfuse.benchmarking.work import stage_work  # imports torch, so it waits until the input is checked

            by_id = {record.sample_id: record for record in records if record.status == "ok" and not record.warmup}
            record = by_id[typical[0]]
            measured = [sample for sample in self.dataset.samples if sample.sample_id in by_id]
            probes = replace(
                probes,
                work=stage_work(model, median, record.output_tokens or 0, record.decode_passes),
                work_sample_id=median.sample_id,
                price=price_of(setup, measured, by_id),
                counted_work=_counted_work(model, median),
                ceilings=measure_ceilings(model.device, model.dtype),
            )
        if settings.profile:
            probes = replace(probes, profile=self._profile(median, folder))
        return probes

    def _profile(self, sample: Sample, folder: RunFolder | None) -> Profile:
        if folder is None:
            return Profile(reason="the run has no folder to keep it in")
        profile, text = profile_sample(self.pairs.setup, sample)
        if text is not None:
            folder.write_text(PROFILE_FILE, text)
        return profile

    def _first(self, records: list[SampleRecord]) -> Sample:
        ok = {record.sample_id for record in records if record.status == "ok"}
        return next(sample for sample in self.dataset.samples if sample.sample_id in ok)

    def _sample(self, sample_id: str) -> Sample:
        return next(sample for sample in self.dataset.samples if sample.sample_id == sample_id)


def _counted_work(model: StagedModel, sample: Sample) -> CountedWork:
    """Return the work of the stages, or why it was not counted: a profiler around the benchmark, or too little memory.

    A failure here must not lose the measurements.
    """
    from unfuse.benchmarking.counted_work import count_work  # imports torch

    try:
        return count_work(model, sample)
    except FAILURES as error:
        return CountedWork(reason=f"it could not be counted: {' '.join(str(error).split())}")


def stage_memory(setup: BenchSetup, sample: Sample) -> tuple[dict[str, StageMemory], str | None]:
    """Return memory by stage and the name of its source; nothing if the system offers no count."""
    meter = memory_meter(setup.model.device)
    if meter is None:
        return {}, None
    clock = MemoryClock(meter)
    setup.run_staged(sample, clock)
    return clock.stages, meter.source


@dataclass(slots=True)
class _CallCounter:
    """A clock that counts calls of the vision side after the stage ``encode``."""

    after_encode: int = 0
    encoded: bool = False
    _stage: str = ""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Remember the running stage."""
        self._stage = name
        yield
        self.encoded = self.encoded or name == "encode"

    def count(self, *_: object) -> None:
        """Count a call as a forward pre-hook."""
        if self.encoded and self._stage != "encode":
            self.after_encode += 1


def calls_after_encode(setup: BenchSetup, sample: Sample) -> int | None:
    """Count calls of vision modules after Stage 3 ended; None if the protocol has no separate Stage 3."""
    counter = _CallCounter()
    modules = setup.model.adapter.vision_modules().values()
    handles = [module.register_forward_pre_hook(counter.count) for module in modules]
    try:
        setup.run_staged(sample, counter, _TOKENS)
    finally:
        for handle in handles:
            handle.remove()
    return counter.after_encode if counter.encoded else None
