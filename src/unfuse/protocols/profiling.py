"""``--profile``: one sample under torch's profiler, after everything that is measured."""

from __future__ import annotations

from typing import Final

from unfuse.errors import UnfuseError
from unfuse.measure.profiler import ProfilerClock, profiling
from unfuse.protocols.protocol import BenchProtocol
from unfuse.protocols.settings import BenchSettings
from unfuse.runs.schema import Profile
from unfuse.samples import Sample
from unfuse.staged_model import StagedModel

PROFILED_TOKENS: Final = 8
"""New tokens at most: every step is like the one before, and each may have thousands of operators."""


def profile_sample(
    protocol: BenchProtocol, model: StagedModel, sample: Sample, settings: BenchSettings
) -> tuple[Profile, str | None]:
    """What is in the profile, and the profile; or why there is none."""
    tokens = min(settings.token_limit, PROFILED_TOKENS)
    try:
        with profiling(model.device) as profiles:
            run = protocol.staged(model, sample, ProfilerClock(), settings, tokens)
    except (UnfuseError, OSError, RuntimeError, MemoryError) as error:
        return Profile(reason=" ".join(f"{type(error).__name__}: {error}".split())), None
    (found,) = profiles
    about = Profile(
        sample_id=sample.sample_id,
        output_tokens=run.generation.output_tokens,
        num_events=found.num_events,
        num_kernels=found.num_kernels,
        num_left_out=found.num_left_out,
    )
    return about, found.text
