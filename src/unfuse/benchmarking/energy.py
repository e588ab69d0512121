"""Measure the energy of each stage of one sample: every stage is repeated alone, on inputs made once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

from unfuse.benchmarking.setup import FAILURES, BenchSetup
from unfuse.measure.clock import paused_gc
from unfuse.measure.energy import SystemTime, counter_steps, work_energy
from unfuse.measure.nvml import Gpu
from unfuse.records.schema import FUSED_STAGE, PROTOCOL_STAGES, Energy, StageEnergy
from unfuse.samples import Sample
from unfuse.unavailable import Unavailable

_QUIET_S: Final = 1.0
"""Wait before the idle power is read: power falls slowly after work ends."""


def stage_energy(setup: BenchSetup, sample: Sample, gpu: Gpu | Unavailable, clock: SystemTime = time) -> Energy:
    """Return the energy of the stages that a protocol times, or why there is none.

    Args:
        setup: with a warm model; ``energy_seconds`` are spent on each stage.
        sample: one that was measured.
        gpu: the GPU that the model runs on.
        clock: source of time.
    """
    settings, timer = setup.settings, setup.timer
    if not settings.energy_seconds:
        return Energy(reason="not requested: --energy-seconds 0")
    if isinstance(gpu, Unavailable):
        return Energy(reason=gpu.reason)
    timer.synchronize()
    clock.sleep(_QUIET_S)
    steps = counter_steps(gpu, clock)
    if isinstance(steps, Unavailable):
        return Energy(reason=steps.reason)
    found: dict[str, StageEnergy] = {}
    missing: dict[str, str] = {}
    calls, tokens = stage_calls(setup, sample)
    with paused_gc():
        for stage, work in calls.items():
            try:
                energy = work_energy(gpu, work, timer.synchronize, steps, seconds=settings.energy_seconds, clock=clock)
            except FAILURES as error:
                energy = Unavailable(" ".join(f"{type(error).__name__}: {error}".split()))
            if isinstance(energy, Unavailable):
                missing[stage] = energy.reason
            else:
                found[stage] = energy
    return Energy(
        source=f"NVML total energy of {gpu.name}",
        sample_id=sample.sample_id,
        output_tokens=tokens,
        stages=found,
        missing=missing,
        idle_watts=steps.idle_watts,
        counter_period_ms=1000 * steps.period_s,
        counter_step_mj=steps.step_mj,
    )


def stage_calls(setup: BenchSetup, sample: Sample) -> tuple[Mapping[str, Callable[[], object]], int]:
    """Return each stage as a call that can be repeated, and the number of tokens of the answer."""
    model, sampling, limit = setup.model_for(sample), setup.settings.sampling, setup.settings.token_limit
    loaded = model.load(sample)
    prepared = model.preprocess(loaded)
    calls: dict[str, Callable[[], object]] = {
        "load": lambda: model.load(sample),
        "preprocess": lambda: model.preprocess(loaded),
    }
    stages = PROTOCOL_STAGES[setup.protocol.name]
    if "encode" in stages:
        calls["encode"] = lambda: model.encode(prepared)
    if FUSED_STAGE in stages:
        calls[FUSED_STAGE] = lambda: model.fused(prepared, limit, sampling)
        return calls, model.fused(prepared, limit, sampling).output_tokens
    features = model.encode(prepared)
    calls["prefill"] = lambda: model.prefill(prepared, features, sampling)
    prefilled = model.prefill(prepared, features, sampling)
    # Each time from equal keys and values, with drafts from an equal history.
    calls["decode"] = lambda: model.decode(prefilled, limit, model.drafts(prepared))
    return calls, model.decode(prefilled, limit).output_tokens
