"""Protocol ``hooked``: the fused call with hooks on tower and projector, found by structure.

Each call of a hooked module is a span between two marks on the device's queue, read once the stage's end has
synchronised; all calls are summed. What the hooks saw is Stage 3, the rest of the fused call is Stage 4: a hook sees no
pooling, no merging and no launch gap, and cannot tell prefill from decode.
"""

from __future__ import annotations

from unfuse import pipeline
from unfuse.measure.clock import Clock
from unfuse.measure.hooks import module_spans
from unfuse.protocols.fused import run_fused
from unfuse.protocols.protocol import BenchProtocol
from unfuse.protocols.settings import BenchSettings
from unfuse.samples import Sample
from unfuse.staged_model import StagedModel


def _hooked(model: StagedModel, sample: Sample, clock: Clock, settings: BenchSettings, tokens: int) -> pipeline.Run:
    with module_spans(model.adapter.vision_modules()):
        return run_fused(model, sample, clock, settings, tokens)


HOOKED = BenchProtocol(name="hooked", staged=_hooked, whole=run_fused, needs_tower=True)
