"""Run some samples once more after all others, in no statistic: the time of each token, and the memory in use.

A token's timestamp is taken on the host when the engine yields it, so it costs no stage edge. It is still not taken in
the measured runs, because memory is read beside it, and reading memory takes time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

from unfuse.benchmarking.setup import BenchSetup
from unfuse.engines import Engine
from unfuse.measure import host_time
from unfuse.measure.clock import StageClock, paused_gc
from unfuse.measure.memory import MemoryMeter, MemoryTrack
from unfuse.records.schema import SampleRecord, StepPass
from unfuse.samples import Sample
from unfuse.speculation.drafter import Drafts
from unfuse.staged_model import StagedModel
from unfuse.stages import Prefilled

MOST_STEPS: Final = 512
"""Most new tokens of a pass."""
_MOST_SECONDS: Final = 10.0
"""Time after which no further pass starts."""


@dataclass(slots=True)
class _TimestampedEngine:
    """An engine that records the time of each token."""

    engine: Engine
    stamps_ns: list[int] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def decode(self, prefilled: Prefilled, max_new_tokens: int, drafts: Drafts | None = None) -> Iterator[int]:
        for token in self.engine.decode(prefilled, max_new_tokens, drafts):
            self.stamps_ns.append(host_time.now_ns())
            yield token


@dataclass(slots=True)
class _MemoryTrackingClock:
    """A clock that reads memory at every edge of a stage, outside the timed span."""

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
    """Return the ids of the sample with the median time, the quickest and the slowest; each once."""
    ok = sorted((r for r in records if r.status == "ok" and not r.warmup), key=lambda r: r.total_host_ms)
    return list(dict.fromkeys(record.sample_id for record in (ok[len(ok) // 2], ok[0], ok[-1]))) if ok else []


def step_passes(setup: BenchSetup, samples: Sequence[Sample], meter: MemoryMeter | None) -> tuple[StepPass, ...]:
    """Run one pass over each sample, until that has taken long enough."""
    passes: list[StepPass] = []
    until_ns = host_time.now_ns() + _MOST_SECONDS * 1e9
    for sample in samples:
        if passes and host_time.now_ns() > until_ns:
            break
        passes.append(_step_pass(setup, sample, meter))
    return tuple(passes)


def _step_pass(setup: BenchSetup, sample: Sample, meter: MemoryMeter | None) -> StepPass:
    model, zero_ns = setup.model, setup.zero_ns
    engine = _TimestampedEngine(model.engine)
    timestamped = replace(setup, model=StagedModel(model.name, model.adapter, cast("Engine", engine)))
    clock = StageClock(setup.timer, zero_ns)
    track = None if meter is None else MemoryTrack(meter, zero_ns)
    tokens = min(setup.settings.token_limit, MOST_STEPS)
    with paused_gc(), track or nullcontext():
        timestamped.run_staged(sample, _MemoryTrackingClock(clock, track), tokens)
    readings = track.readings if track is not None else []
    return StepPass(
        sample_id=sample.sample_id,
        stages=clock.stages,
        spans=clock.spans,
        token_ms=tuple((stamp - zero_ns) / 1e6 for stamp in engine.stamps_ns),
        memory_ms=tuple(ms for ms, _ in readings),
        memory_bytes=tuple(num_bytes for _, num_bytes in readings),
    )
