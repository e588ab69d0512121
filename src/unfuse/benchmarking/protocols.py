"""The four protocols: the stages that each protocol times, and equal work in one piece.

``decoupled``
    Every stage once, separately; features are encoded once and used.
``fused``
    Load, preprocess, and the model's own ``generate`` in one piece: the 3-stage view.
``hooked``
    The fused call with hooks on tower and projector, found by structure. Each call of a hooked module is a span between
    two marks on the device's queue, read once the stage's end has synchronised; all calls are summed. The spans are
    Stage 3, the rest of the fused call is Stage 4: a hook sees no pooling, no merging and no launch gap, and cannot
    tell prefill from decode.
``reencode``
    The seed's invalid 4-stage benchmark, the control that must be rejected. Stage 3 encodes and throws the features
    away; Stage 4 is the fused ``generate`` and encodes again. Vision is paid twice and shown once, so the stages add
    up to more than the wait of a user.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from unfuse import pipeline
from unfuse.benchmarking.settings import BenchSettings
from unfuse.measure.clock import Clock
from unfuse.measure.hooks import module_spans
from unfuse.pipeline import Run
from unfuse.records.schema import FUSED_STAGE
from unfuse.samples import Sample
from unfuse.staged_model import StagedModel


class Pass(Protocol):
    """One sample through a model under a clock."""

    def __call__(self, model: StagedModel, sample: Sample, clock: Clock, settings: BenchSettings, tokens: int) -> Run:
        """Run the sample and write at most ``tokens`` new tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchProtocol:
    """One way to measure."""

    name: str
    staged: Pass
    """Timed stage by stage."""
    whole: Pass
    """The call that a user would make instead, run without a clock: end to end."""
    needs: tuple[Callable[[StagedModel], object], ...] = ()
    """Each returns a part of the model that the protocol uses, or raises CutError."""

    def check(self, model: StagedModel) -> None:
        """Refuse a model that cannot be measured under this protocol.

        Raises:
            CutError: with the reason.
        """
        for part in self.needs:
            part(model)


def _language_model(model: StagedModel) -> object:
    return model.adapter.language


def _vision_modules(model: StagedModel) -> object:
    return model.adapter.vision_modules()


def _decoupled(model: StagedModel, sample: Sample, clock: Clock, settings: BenchSettings, tokens: int) -> Run:
    return pipeline.run(model, sample, clock, sampling=settings.sampling, max_new_tokens=tokens, reuse=settings.reuse)


def _fused(model: StagedModel, sample: Sample, clock: Clock, settings: BenchSettings, tokens: int) -> Run:
    return pipeline.run_fused(model, sample, clock, sampling=settings.sampling, max_new_tokens=tokens)


def _hooked(model: StagedModel, sample: Sample, clock: Clock, settings: BenchSettings, tokens: int) -> Run:
    with module_spans(model.adapter.vision_modules()):
        return _fused(model, sample, clock, settings, tokens)


def _reencode(model: StagedModel, sample: Sample, clock: Clock, settings: BenchSettings, tokens: int) -> Run:
    with clock.stage("load"):
        loaded = model.load(sample)
    with clock.stage("preprocess"):
        prepared = model.preprocess(loaded)
    with clock.stage("encode"):
        model.encode(prepared)
    with clock.stage(FUSED_STAGE):
        generation = model.fused(prepared, tokens, settings.sampling)
    return Run(loaded=loaded, prepared=prepared, generation=generation)


DECOUPLED: Final = BenchProtocol(name="decoupled", staged=_decoupled, whole=_decoupled, needs=(_language_model,))
HOOKED: Final = BenchProtocol(name="hooked", staged=_hooked, whole=_fused, needs=(_vision_modules,))
FUSED: Final = BenchProtocol(name="fused", staged=_fused, whole=_fused)
REENCODE: Final = BenchProtocol(
    name="reencode", staged=_reencode, whole=_fused, needs=(_language_model, _vision_modules)
)

PROTOCOLS: Final = {protocol.name: protocol for protocol in (DECOUPLED, HOOKED, FUSED, REENCODE)}
"""Protocols in the order of ``--protocol all``."""
