"""A loaded model under one protocol, with its settings and its clock: the input of every measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from unfuse.benchmarking.drafting import SampleDrafters
from unfuse.benchmarking.protocols import BenchProtocol
from unfuse.benchmarking.settings import BenchSettings
from unfuse.errors import UnfuseError
from unfuse.measure.clock import Clock, NoClock
from unfuse.measure.timers import DeviceTimer
from unfuse.pipeline import Run
from unfuse.samples import Sample
from unfuse.staged_model import StagedModel

FAILURES: Final = (UnfuseError, OSError, RuntimeError, MemoryError)
"""Errors that become a record. torch raises RuntimeError when memory runs out or a device fails."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchSetup:
    """A loaded model under one protocol."""

    model: StagedModel
    protocol: BenchProtocol
    settings: BenchSettings
    timer: DeviceTimer
    """Timer of the model's device."""
    zero_ns: int = 0
    """Reading of ``perf_counter_ns`` from which start times count."""

    drafters: SampleDrafters | None = None
    """Drafters of ``decode``; None without speculation."""

    def model_for(self, sample: Sample) -> StagedModel:
        """Return the model with the drafter for a sample."""
        return self.model.with_drafter(None if self.drafters is None else self.drafters.before(sample.sample_id))

    def prepare(self, sample: Sample) -> None:
        """Make the drafter for a sample. A history of many answers takes long, so this comes before a timed run."""
        if self.drafters is not None:
            self.drafters.before(sample.sample_id)

    def run_staged(self, sample: Sample, clock: Clock, tokens: int | None = None) -> Run:
        """Run a sample stage by stage; ``tokens`` are the new tokens at most, by default as the settings say."""
        model = self.model_for(sample)
        return self.protocol.staged(model, sample, clock, self.settings, tokens or self.settings.token_limit)

    def run_whole(self, sample: Sample, tokens: int | None = None) -> Run:
        """Run a sample in one piece, without a clock."""
        return self.protocol.whole(
            self.model_for(sample), sample, NoClock(), self.settings, tokens or self.settings.token_limit
        )
