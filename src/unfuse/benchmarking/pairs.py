"""Measure samples under one protocol: each staged under the clock, and once more in one piece without it.

For each sample: warm-up repeats if its input shape is new; one staged run; one unstaged end-to-end run of the same
work. Their order alternates, so that neither always profits from the other. A sample that fails becomes a record with
the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from unfuse import pipeline
from unfuse.benchmarking.setup import FAILURES, BenchSetup
from unfuse.errors import UnfuseError
from unfuse.measure import host_time
from unfuse.measure.clock import StageClock, paused_gc
from unfuse.measure.warmup import is_steady
from unfuse.records.schema import Noise, SampleRecord, StageTime
from unfuse.report.statistics import MIN_PAIRS, balance
from unfuse.samples import Sample
from unfuse.staged_model import StagedModel

_NARROW_PCT: Final = 1.0
"""Width of the balance's interval that is narrow enough to stop repeating."""

ShapeKey = tuple[tuple[int, ...], int]


class Pairs:
    """Measures samples under one setup, and remembers the warm input shapes."""

    def __init__(self, setup: BenchSetup):
        self.setup = setup
        self._warm: set[ShapeKey] = set()
        self._turn = 0

    def measure(self, sample: Sample) -> Iterator[SampleRecord]:
        """Yield the warm-up records, if any, then the sample's record; a failure is a record too."""
        try:
            yield from self._warm_up(sample)
            record = self._pair(sample)
        except FAILURES as error:
            yield SampleRecord(
                sample_id=sample.sample_id,
                status="failed",
                error=_one_line(error),
                question=sample.question,
                reference=sample.reference,
            )
            return
        if (drafters := self.setup.drafters) is not None:
            record = replace(record, answer_known=drafters.knows(record.token_ids or ()))
            drafters.learn(record)
        yield record

    def noise(self, sample: Sample) -> Noise:
        """Repeat one warm sample, staged and unstaged in turn, in whole runs.

        ``noise_repeats`` pairs show the noise. More follow until the balance is known to half a percent or
        ``balance_seconds`` are spent. A shorter run would leave out a fault that grows with the answer.
        """
        settings = self.setup.settings
        repeats = [self._pair(sample) for _ in range(settings.noise_repeats)]
        until_ns = host_time.now_ns() + settings.balance_seconds * 1e9
        while host_time.now_ns() < until_ns:
            repeats.append(self._pair(sample))
            found = balance([(pair.total_host_ms, pair.e2e_host_ms or 0.0) for pair in repeats])
            if len(repeats) >= MIN_PAIRS and found.ci_high_pct - found.ci_low_pct <= _NARROW_PCT:
                break
        return Noise(
            sample_id=sample.sample_id,
            total_host_ms=tuple(pair.total_host_ms for pair in repeats),
            e2e_host_ms=tuple(pair.e2e_host_ms or 0.0 for pair in repeats),
        )

    def _warm_up(self, sample: Sample) -> Iterator[SampleRecord]:
        shape = input_shape(self.setup.model, sample)
        if shape in self._warm:
            return
        totals: list[float] = []
        while not is_steady(totals, self.setup.settings.num_warmups):
            record = replace(self._staged(sample), warmup=True)
            totals.append(record.total_host_ms)
            yield record
        self._warm.add(shape)

    def _pair(self, sample: Sample) -> SampleRecord:
        self._turn += 1
        if self._turn % 2:
            record = self._staged(sample)
            whole, token_ids = self._unstaged(sample)
        else:
            whole, token_ids = self._unstaged(sample)
            record = self._staged(sample)
        return replace(
            record,
            e2e_host_ms=whole.host_ms,
            e2e_start_ms=whole.start_ms,
            e2e_same_tokens=token_ids == record.token_ids,
        )

    def _staged(self, sample: Sample) -> SampleRecord:
        # Frames and features must be freed before the next run is timed: memory that one run of a pair still holds, the
        # other must request anew from the system, and a few percent of a short run are page faults.
        clock = StageClock(self.setup.timer, self.setup.zero_ns)
        self.setup.prepare(sample)
        with paused_gc():
            run, whole = self._timed(lambda: self.setup.run_staged(sample, clock))
        return _record(sample, run, clock, whole.host_ms, self.setup.model.engine.notes)

    def _unstaged(self, sample: Sample) -> tuple[StageTime, tuple[int, ...]]:
        self.setup.prepare(sample)
        with paused_gc():
            run, whole = self._timed(lambda: self.setup.run_whole(sample))
        return whole, run.generation.token_ids

    def _timed(self, body: Callable[[], pipeline.Run]) -> tuple[pipeline.Run, StageTime]:
        timer = self.setup.timer
        timer.synchronize()
        started = host_time.now_ns()
        run = body()
        timer.synchronize()
        host_ms = (host_time.now_ns() - started) / 1e6
        return run, StageTime(host_ms=host_ms, start_ms=(started - self.setup.zero_ns) / 1e6)


def _record(
    sample: Sample, run: pipeline.Run, clock: StageClock, host_ms: float, notes: tuple[str, ...]
) -> SampleRecord:
    frames, passes = run.loaded.frames, run.generation.speculation
    return SampleRecord(
        sample_id=sample.sample_id,
        status="ok",
        stages=clock.stages,
        spans=clock.spans,
        staged_host_ms=host_ms,
        question=run.prepared.question,
        media=run.loaded.media,
        media_sha256=run.loaded.media_sha256,
        num_events=run.loaded.num_events,
        num_frames=len(frames),
        text_tokens=run.prepared.text_tokens,
        media_tokens=run.prepared.media_tokens,
        frame_size=frames[0].shape[:2] if frames else None,
        pixels=tuple(run.prepared.pixel_values.shape) if frames else None,
        output_tokens=run.generation.output_tokens,
        reused_prefix_tokens=run.generation.reused_prefix_tokens,
        draft_tokens=None if passes is None else passes.draft_tokens,
        accepted_tokens=None if passes is None else passes.accepted_tokens,
        decode_passes=None if passes is None else passes.decode_passes,
        accepted_by_pass=None if passes is None else tuple(passes.accepted),
        drafting_ms=None if passes is None else 1e3 * passes.drafting_s,
        token_ids=run.generation.token_ids,
        text=run.generation.text,
        stop_reason=run.generation.stop_reason,
        reference=sample.reference,
        notes=(*run.loaded.notes, *notes),
    )


def input_shape(model: StagedModel, sample: Sample) -> ShapeKey:
    """Return the shapes that kernels are chosen by: the pixel tensor's shape and the prompt's length."""
    prepared = model.preprocess(model.load(sample))
    return tuple(prepared.pixel_values.shape), prepared.text_tokens + prepared.media_tokens


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, UnfuseError) else f"{type(error).__name__}: {text}"
