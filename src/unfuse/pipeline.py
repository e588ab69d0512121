"""READ FIRST. From a sample to an answer through the five stages, under one clock.

These lines are a run for every model and every clock. The unstaged end-to-end call is this function with a clock that
has no edges.
"""

from __future__ import annotations

from dataclasses import dataclass

from unfuse.features import Features
from unfuse.measure.clock import Clock
from unfuse.records.schema import FUSED_STAGE
from unfuse.samples import Sample
from unfuse.staged_model import StagedModel
from unfuse.stages import Generation, Loaded, Prepared, Sampling


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Values of one pass through the stages."""

    loaded: Loaded
    prepared: Prepared
    generation: Generation
    features: Features | None = None
    """None after the fused call."""


def run(
    model: StagedModel,
    sample: Sample,
    clock: Clock,
    *,
    sampling: Sampling,
    max_new_tokens: int,
    reuse: bool = False,
) -> Run:
    """Run every stage once on one sample."""
    with clock.stage("load"):
        loaded = model.load(sample)
    with clock.stage("preprocess"):
        prepared = model.preprocess(loaded)
    with clock.stage("encode"):
        features = model.encode(prepared)
    with clock.stage("prefill"):
        prefilled = model.prefill(prepared, features, sampling, reuse=reuse)
    with clock.stage("decode"):
        generation = model.decode(prefilled, max_new_tokens, model.drafts(prepared))
    return Run(loaded=loaded, prepared=prepared, features=features, generation=generation)


def run_fused(
    model: StagedModel,
    sample: Sample,
    clock: Clock,
    *,
    sampling: Sampling,
    max_new_tokens: int,
) -> Run:
    """Run the 3-stage view: the model's own ``generate`` after ``preprocess``."""
    with clock.stage("load"):
        loaded = model.load(sample)
    with clock.stage("preprocess"):
        prepared = model.preprocess(loaded)
    with clock.stage(FUSED_STAGE):
        generation = model.fused(prepared, max_new_tokens, sampling)
    return Run(loaded=loaded, prepared=prepared, generation=generation)
