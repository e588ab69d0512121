"""Some samples run once more after all others, in no statistic: when each token came, and what memory was held.

The marks of a token are taken on the host as the engine gives it out, so they cost no edge. They are taken here and
not in the measured runs all the same: reading memory beside them is not free.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, cast

from unfuse.engines import Engine
from unfuse.measure import host_time
from unfuse.measure.clock import StageClock, paused_gc
from unfuse.measure.memory import MemoryMeter, MemoryTrack
from unfuse.measure.timers import DeviceTimer
from unfuse.protocols.protocol import BenchProtocol
from unfuse.protocols.settings import BenchSettings
from unfuse.runs.schema import SampleRecord, StepPass
from unfuse.samples import Sample
from unfuse.staged_model import StagedModel
from unfuse.stages import Prefilled

MOST_STEPS: Final = 512
"""New tokens of a pass at most."""
_MOST_SECONDS: Final = 10.0
"""No further pass is begun after so long."""


@dataclass(slots=True)
class _Stamped:
    """An engine that notes when each token is there."""

    engine: Engine
    stamps_ns: list[int] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def decode(self, prefilled: Prefilled, max_new_tokens: int) -> Iterator[int]:
        for token in self.engine.decode(prefilled, max_new_tokens):
            self.stamps_ns.append(host_time.now_ns())
            yield token


@dataclass(slots=True)
class _Watched:
    """A clock that has memory read at every edge, outside of what it times."""

    clock: StageClock
    track: MemoryTrack | None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._note()
        with self.clock.stage(name):
            yield
        self._note()

    def _note(self) -> None:
        if self.track is not None:
            self.track.note()


def typical_samples(records: Sequence[SampleRecord]) -> list[str]:
    """The middle one by its time, the quickest and the slowest; each once."""
    ok = sorted((r for r in records if r.status == "ok" and not r.warmup), key=lambda r: r.total_host_ms)
    return list(dict.fromkeys(record.sample_id for record in (ok[len(ok) // 2], ok[0], ok[-1]))) if ok else []


def step_passes(
    protocol: BenchProtocol,
    model: StagedModel,
    samples: Sequence[Sample],
    settings: BenchSettings,
    timer: DeviceTimer,
    zero_ns: int,
    meter: MemoryMeter | None,
) -> tuple[StepPass, ...]:
    """One pass over each sample, until that has taken long enough."""
    passes: list[StepPass] = []
    until_ns = host_time.now_ns() + _MOST_SECONDS * 1e9
    for sample in samples:
        if passes and host_time.now_ns() > until_ns:
            break
        passes.append(_step_pass(protocol, model, sample, settings, timer, zero_ns, meter))
    return tuple(passes)


def _step_pass(
    protocol: BenchProtocol,
    model: StagedModel,
    sample: Sample,
    settings: BenchSettings,
    timer: DeviceTimer,
    zero_ns: int,
    meter: MemoryMeter | None,
) -> StepPass:
    stamped = _Stamped(model.engine)
    watched = StagedModel(model.name, model.adapter, cast("Engine", stamped))
    clock = StageClock(timer, zero_ns)
    track = None if meter is None else MemoryTrack(meter, zero_ns)
    tokens = min(settings.token_limit, MOST_STEPS)
    with paused_gc():
        if track is None:
            protocol.staged(watched, sample, _Watched(clock, None), settings, tokens)
        else:
            with track:
                protocol.staged(watched, sample, _Watched(clock, track), settings, tokens)
    readings = track.readings if track is not None else []
    return StepPass(
        sample_id=sample.sample_id,
        stages=clock.stages,
        spans=clock.spans,
        token_ms=tuple((stamp - zero_ns) / 1e6 for stamp in stamped.stamps_ns),
        memory_ms=tuple(ms for ms, _ in readings),
        memory_bytes=tuple(held for _, held in readings),
    )
