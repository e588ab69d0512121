"""What is measured beside the samples, on one of them, untimed: memory of each stage, and who called the tower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from unfuse.measure.memory import MemoryClock, memory_meter
from unfuse.protocols.protocol import BenchProtocol
from unfuse.protocols.settings import BenchSettings
from unfuse.runs.schema import StageMemory
from unfuse.samples import Sample
from unfuse.staged_model import StagedModel

_TOKENS = 4


def stage_memory(
    protocol: BenchProtocol, model: StagedModel, sample: Sample, settings: BenchSettings
) -> tuple[dict[str, StageMemory], str | None]:
    """Memory by stage, and whose count it is; nothing where the system offers none."""
    meter = memory_meter(model.device)
    if meter is None:
        return {}, None
    clock = MemoryClock(meter)
    protocol.staged(model, sample, clock, settings, settings.token_limit)
    return clock.stages, meter.source


@dataclass(slots=True)
class _CallCounter:
    """In the place of a clock: counts calls of the vision side after the stage ``encode``."""

    after_encode: int = 0
    encoded: bool = False
    _stage: str = ""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Remembers which stage runs."""
        self._stage = name
        yield
        self.encoded = self.encoded or name == "encode"

    def count(self, *_: object) -> None:
        """A hook."""
        if self.encoded and self._stage != "encode":
            self.after_encode += 1


def calls_after_encode(
    protocol: BenchProtocol, model: StagedModel, sample: Sample, settings: BenchSettings
) -> int | None:
    """Calls of vision modules after Stage 3 had ended; None where the protocol has no Stage 3 of its own."""
    counter = _CallCounter()
    modules = model.adapter.vision_modules().values()
    handles = [module.register_forward_pre_hook(counter.count) for module in modules]
    try:
        protocol.staged(model, sample, counter, settings, _TOKENS)
    finally:
        for handle in handles:
            handle.remove()
    return counter.after_encode if counter.encoded else None
