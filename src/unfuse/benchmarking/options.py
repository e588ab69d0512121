"""Surroundings of a run: output, listener, isolation guard and frame store."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from unfuse.measure.isolation import IsolationGuard
from unfuse.records import SampleRecord
from unfuse.records.frames import FrameStore
from unfuse.staged_model import StagedModel


class BenchListener:
    """Receives the progress of a benchmark; does nothing by default."""

    def loading(self, name: str) -> None:
        """Handle the start of a load, before the model is loaded."""

    def loaded(self, model: StagedModel) -> None:
        """Handle the end of a load."""

    def part(self, model: str, protocol: str, event: str) -> None:
        """Handle the event that one model's run under one protocol starts, is found finished, or fails."""

    def record(self, index: int, record: SampleRecord) -> None:
        """Handle the record of a sample, warm-up included, once the record is safe."""

    def warning(self, text: str) -> None:
        """Handle a warning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """Surroundings of a run; they change no result."""

    output: Path | None = None
    """Run folder, written as the run goes on; None keeps the run in memory."""
    resume: bool = False
    """Whether the run in ``output`` is continued."""
    listener: BenchListener = field(default_factory=BenchListener)
    guard: IsolationGuard | None = None
    """Checks whether the run has the machine to itself; by default the guard of the model's device."""
    frames: FrameStore | None = None
    """Store of small pictures of the samples; by default a folder in ``output``, none without it."""
