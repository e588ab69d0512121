"""Price of the split: the stages beside the engine's own call and beside Hugging Face's ``generate``, in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import Final

from unfuse import pipeline
from unfuse.benchmarking.setup import FAILURES, BenchSetup
from unfuse.measure import host_time
from unfuse.measure.clock import NoClock, StageClock, paused_gc
from unfuse.records.schema import SampleRecord
from unfuse.records.work_records import Price
from unfuse.samples import Sample

MOST_SAMPLES: Final = 8
TURNS: Final = 16
"""Turns over these samples: one slow run then hides no price."""


def price_of(setup: BenchSetup, samples: Sequence[Sample], records: Mapping[str, SampleRecord]) -> Price:
    """Time each sample in three ways, with as many new tokens as its answer has.

    Args:
        setup: with a warm model that has separate stages; ``balance_seconds`` limit the time.
        samples: measured samples; the first 8 are used.
        records: their records, by id.
    """
    seconds, used = setup.settings.balance_seconds, samples[:MOST_SAMPLES]
    if not seconds:
        return Price(reason="not requested: --balance-seconds 0")
    until_ns = host_time.now_ns() + seconds * 1e9
    turns: list[tuple[str, dict[str, float]]] = []
    try:
        for index, sample in enumerate(islice(cycle(used), TURNS)):
            if turns and host_time.now_ns() > until_ns:
                break
            calls = _calls(setup, sample, records[sample.sample_id].output_tokens or 1)
            shift = index % len(calls)  # each takes every place in the order equally often
            with paused_gc():
                turns.append((sample.sample_id, {name: calls[name]() for name in _shifted(list(calls), shift)}))
    except FAILURES as error:
        return Price(reason=f"it could not be measured: {' '.join(str(error).split())}")
    return Price(
        sample_ids=tuple(sample_id for sample_id, _ in turns),
        stages_ms=tuple(times["stages"] for _, times in turns),
        call_ms=tuple(times["call"] for _, times in turns),
        generate_ms=tuple(times["generate"] for _, times in turns),
    )


def _calls(setup: BenchSetup, sample: Sample, tokens: int) -> Mapping[str, Callable[[], float]]:
    """Return the three ways to answer a sample; each returns its time in ms."""
    setup = replace(setup, settings=replace(setup.settings, output_length=tokens), drafters=None)
    model, sampling = setup.model_for(sample), setup.settings.sampling

    def stages() -> float:
        clock = StageClock(setup.timer)
        setup.run_staged(sample, clock)
        return sum(stage.host_ms for stage in clock.stages.values())

    def call() -> None:
        features = model.encode(sample)
        model.generate(sample.question or "", features, max_new_tokens=tokens, sampling=sampling, reuse=False)

    def generate() -> None:
        pipeline.run_fused(model, sample, NoClock(), sampling=sampling, max_new_tokens=tokens)

    return {
        "stages": stages,
        "call": lambda: _timed(setup, call),
        "generate": lambda: _timed(setup, generate),
    }


def _timed(setup: BenchSetup, call: Callable[[], None]) -> float:
    setup.timer.synchronize()
    started = host_time.now_ns()
    call()
    setup.timer.synchronize()
    return (host_time.now_ns() - started) / 1e6


def _shifted(names: list[str], by: int) -> list[str]:
    return names[by:] + names[:by]
