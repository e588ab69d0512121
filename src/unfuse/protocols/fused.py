"""Protocol ``fused``: load, preprocess, and the model's own ``generate`` in one piece. The 3-stage view."""

from __future__ import annotations

from unfuse import pipeline
from unfuse.measure.clock import Clock
from unfuse.protocols.protocol import BenchProtocol
from unfuse.protocols.settings import BenchSettings
from unfuse.samples import Sample
from unfuse.staged_model import StagedModel


def run_fused(model: StagedModel, sample: Sample, clock: Clock, settings: BenchSettings, tokens: int) -> pipeline.Run:
    """A ``Pass``."""
    return pipeline.run_fused(model, sample, clock, sampling=settings.sampling, max_new_tokens=tokens)


FUSED = BenchProtocol(name="fused", staged=run_fused, whole=run_fused)
