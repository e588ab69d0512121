"""Energy of each stage of one sample: every stage repeated by itself, on inputs made once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

from unfuse.errors import UnfuseError
from unfuse.measure.clock import paused_gc
from unfuse.measure.energy import Time, counter_steps, work_energy
from unfuse.measure.nvml import Gpu, Unread
from unfuse.measure.timers import DeviceTimer
from unfuse.protocols.settings import BenchSettings
from unfuse.runs.schema import FUSED_STAGE, PROTOCOL_STAGES, Energy, StageEnergy
from unfuse.samples import Sample
from unfuse.staged_model import StagedModel

_QUIET_S: Final = 1.0
"""Power falls for a while after work has ended."""


def stage_energy(
    protocol: str,
    model: StagedModel,
    sample: Sample,
    settings: BenchSettings,
    gpu: Gpu | Unread,
    timer: DeviceTimer,
    clock: Time = time,
) -> Energy:
    """Energy of the stages that a protocol times, or why there is none.

    Args:
        protocol: its name.
        model: warm.
        sample: one that was measured.
        settings: ``energy_seconds`` are spent on each stage.
        gpu: what the model runs on.
        timer: of the device.
        clock: where time comes from.
    """
    if not settings.energy_seconds:
        return Energy(reason="not asked for: --energy-seconds 0")
    if isinstance(gpu, Unread):
        return Energy(reason=gpu.reason)
    timer.synchronize()
    clock.sleep(_QUIET_S)
    steps = counter_steps(gpu, clock)
    if isinstance(steps, Unread):
        return Energy(reason=steps.reason)
    found: dict[str, StageEnergy] = {}
    missing: dict[str, str] = {}
    calls, tokens = stage_calls(protocol, model, sample, settings)
    with paused_gc():
        for stage, work in calls.items():
            try:
                energy = work_energy(gpu, work, timer.synchronize, steps, seconds=settings.energy_seconds, clock=clock)
            except (UnfuseError, OSError, RuntimeError, MemoryError) as error:
                energy = Unread(" ".join(f"{type(error).__name__}: {error}".split()))
            if isinstance(energy, Unread):
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


def stage_calls(
    protocol: str, model: StagedModel, sample: Sample, settings: BenchSettings
) -> tuple[Mapping[str, Callable[[], object]], int]:
    """Each stage as a call that can be repeated, and how many tokens the answer has."""
    sampling, limit = settings.sampling, settings.token_limit
    loaded = model.load(sample)
    prepared = model.preprocess(loaded)
    calls: dict[str, Callable[[], object]] = {
        "load": lambda: model.load(sample),
        "preprocess": lambda: model.preprocess(loaded),
    }
    stages = PROTOCOL_STAGES[protocol]
    if "encode" in stages:
        calls["encode"] = lambda: model.encode(prepared)
    if FUSED_STAGE in stages:
        calls[FUSED_STAGE] = lambda: model.fused(prepared, limit, sampling)
        return calls, model.fused(prepared, limit, sampling).output_tokens
    features = model.encode(prepared)
    calls["prefill"] = lambda: model.prefill(prepared, features, sampling)
    prefilled = model.prefill(prepared, features, sampling)
    calls["decode"] = lambda: model.decode(prefilled, limit)  # from the same keys and values each time
    return calls, model.decode(prefilled, limit).output_tokens
