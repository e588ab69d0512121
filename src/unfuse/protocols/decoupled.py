"""Protocol ``decoupled``: every stage once, on its own; features encoded once and used."""

from __future__ import annotations

from unfuse import pipeline
from unfuse.measure.clock import Clock
from unfuse.protocols.protocol import BenchProtocol
from unfuse.protocols.settings import BenchSettings
from unfuse.samples import Sample
from unfuse.staged_model import StagedModel


def _run(model: StagedModel, sample: Sample, clock: Clock, settings: BenchSettings, tokens: int) -> pipeline.Run:
    return pipeline.run(model, sample, clock, sampling=settings.sampling, max_new_tokens=tokens, reuse=settings.reuse)


DECOUPLED = BenchProtocol(name="decoupled", staged=_run, whole=_run, needs_cut=True)
