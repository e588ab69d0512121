"""``--profile``: one sample under torch's profiler, after everything that is measured."""

from __future__ import annotations

from typing import Final

from unfuse.benchmarking.setup import FAILURES, BenchSetup
from unfuse.measure.profiler import ProfilerClock, profiling
from unfuse.records.schema import Profile
from unfuse.samples import Sample

PROFILED_TOKENS: Final = 8
"""New tokens at most: every step is like the one before, and each may have thousands of operators."""


def profile_sample(setup: BenchSetup, sample: Sample) -> tuple[Profile, str | None]:
    """Return a description of the profile and its text, or the reason why there is none."""
    tokens = min(setup.settings.token_limit, PROFILED_TOKENS)
    try:
        with profiling(setup.model.device) as profiles:
            run = setup.run_staged(sample, ProfilerClock(), tokens)
    except FAILURES as error:
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
