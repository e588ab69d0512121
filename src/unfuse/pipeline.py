"""READ FIRST. From a sample to an answer through the five stages, under one clock.

Whatever the model and whatever the clock, a run is these lines. The unstaged end-to-end call is the same function with
a clock that has no edges.
"""

from __future__ import annotations

from dataclasses import dataclass

from unfuse.features import Features
from unfuse.measure.clock import Clock
from unfuse.runs.schema import FUSED_STAGE
from unfuse.samples import Sample
from unfuse.staged_model import StagedModel
from unfuse.stages import Generation, Loaded, Prepared, Sampling


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What one pass through the stages gave."""

    loaded: Loaded
    prepared: Prepared
    generation: Generation
    features: Features | None = None
    """None where the fused call was run."""


def run(
    model: StagedModel,
    sample: Sample,
    clock: Clock,
    *,
    sampling: Sampling,
    max_new_tokens: int,
    reuse: bool = False,
) -> Run:
    """One sample, one question, every stage once."""
    with clock.stage("load"):
        loaded = model.load(sample)
    with clock.stage("preprocess"):
        prepared = model.preprocess(loaded)
    with clock.stage("encode"):
        features = model.encode(prepared)
    with clock.stage("prefill"):
        prefilled = model.prefill(prepared, features, sampling, reuse=reuse)
    with clock.stage("decode"):
        generation = model.decode(prefilled, max_new_tokens)
    return Run(loaded=loaded, prepared=prepared, features=features, generation=generation)


def run_fused(
    model: StagedModel,
    sample: Sample,
    clock: Clock,
    *,
    sampling: Sampling,
    max_new_tokens: int,
) -> Run:
    """The same with everything after ``preprocess`` in the model's own ``generate``: the 3-stage view."""
    with clock.stage("load"):
        loaded = model.load(sample)
    with clock.stage("preprocess"):
        prepared = model.preprocess(loaded)
    with clock.stage(FUSED_STAGE):
        generation = model.fused(prepared, max_new_tokens, sampling)
    return Run(loaded=loaded, prepared=prepared, generation=generation)
