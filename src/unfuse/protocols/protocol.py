"""What a protocol is: which calls are timed as which stages, and what the same work is in one piece."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from unfuse.measure.clock import Clock
from unfuse.pipeline import Run
from unfuse.protocols.settings import BenchSettings
from unfuse.samples import Sample
from unfuse.staged_model import StagedModel


class Pass(Protocol):
    """One sample through a model under a clock."""

    def __call__(self, model: StagedModel, sample: Sample, clock: Clock, settings: BenchSettings, tokens: int) -> Run:
        """Runs it; ``tokens`` are the new tokens at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchProtocol:
    """One way to measure."""

    name: str
    staged: Pass
    """Timed stage by stage."""
    whole: Pass
    """What a user would call instead, run without a clock: end to end."""
    needs_cut: bool = False
    """Whether the model's stages must come apart."""
    needs_tower: bool = False
    """Whether the vision tower must be found."""
