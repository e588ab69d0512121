"""Protocol ``reencode``: the seed's invalid 4-stage benchmark, kept as the control that must be rejected.

Stage 3 encodes and throws the features away; Stage 4 is the fused ``generate``, which encodes again. Vision is paid
twice and shown once, so the stages add up to more than what a user waits for.
"""

from __future__ import annotations

from unfuse import pipeline
from unfuse.measure.clock import Clock
from unfuse.protocols.fused import run_fused
from unfuse.protocols.protocol import BenchProtocol
from unfuse.protocols.settings import BenchSettings
from unfuse.runs.schema import FUSED_STAGE
from unfuse.samples import Sample
from unfuse.staged_model import StagedModel


def _reencode(model: StagedModel, sample: Sample, clock: Clock, settings: BenchSettings, tokens: int) -> pipeline.Run:
    with clock.stage("load"):
        loaded = model.load(sample)
    with clock.stage("preprocess"):
        prepared = model.preprocess(loaded)
    with clock.stage("encode"):
        model.encode(prepared)
    with clock.stage(FUSED_STAGE):
        generation = model.fused(prepared, tokens, settings.sampling)
    return pipeline.Run(loaded=loaded, prepared=prepared, generation=generation)


REENCODE = BenchProtocol(name="reencode", staged=_reencode, whole=run_fused, needs_cut=True, needs_tower=True)
