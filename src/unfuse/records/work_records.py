"""Records of the work of the stages, a part of ``probes.json``: expected, executed, repeated and timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class StageWork:
    """Least work of a stage for one sample."""

    flops: int
    """Multiplications and additions of the matrix products."""
    least_bytes: int
    """Least memory traffic of weights, cache, inputs and outputs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageProducts:
    """Operations of the matrix products and convolutions of one stage, in FLOP.

    The keys are ``width N`` for linear layers and convolutions with N inputs for each output, and ``attention`` for
    products with a matrix for each element of a batch.
    """

    expected: Mapping[str, int]
    executed: Mapping[str, int]
    largest: Mapping[str, str] = field(default_factory=dict)
    """Operator that executed the most of each key, with its shapes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CountedWork:
    """Work of all threads in one untimed pass, beside the work that the model's definition asks for."""

    reason: str | None = None
    """Reason why nothing was counted."""
    stages: Mapping[str, StageProducts] = field(default_factory=dict)
    output_tokens: int | None = None
    source: str | None = None
    """Origin of the expected numbers: the config, or the model's own modules."""
    attention_counted: bool = True
    """False if kernels outside of torch compute attention."""
    features_in_prompt: bool | None = None
    """Whether the prompt holds the features as ``encode`` returned them; None if the family moves them."""
    not_counted: Mapping[str, str] = field(default_factory=dict)
    """Stages that run outside of torch, with the reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceilings:
    """Largest measured memory bandwidth and arithmetic throughput of the device."""

    bytes_per_s: float
    """Bandwidth of reading or copying a large buffer."""
    flops_per_s: float
    """Throughput of a large matrix product in the model's dtype."""
    error_pct: float | None = None
    """Spread of the repeats in % of the fastest one, the larger of both ceilings; None in older runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """Work of one stage, as counts that do not depend on the speed of the machine; None where it was not counted."""

    operators: int | None = None
    """Operators of torch."""
    elements: int | None = None
    """Elements of their results."""
    calls: int | None = None
    """Calls of Python and C functions."""
    read_bytes: int | None = None
    """Bytes that the process read from files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageReuse:
    """Work of one stage on new media and on a sample that was measured before."""

    new: Effort
    """Least work on media of equal shape and other content."""
    again: Effort
    """Most work on the measured sample."""
    time_ratio: float | None = None
    """Median time of the measured sample over that of new media."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reuse:
    """Results that the model reused between runs, or the reason why nobody looked."""

    sample_id: str
    reason: str | None = None
    """Reason why nothing was compared."""
    findings: tuple[str, ...] = ()
    stages: Mapping[str, StageReuse] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """Times of samples with equal numbers of new tokens, run in three ways in turn; or the reason for none."""

    reason: str | None = None
    sample_ids: tuple[str, ...] = ()
    """Sample of each turn."""
    stages_ms: tuple[float, ...] = ()
    """Sum of the stages."""
    call_ms: tuple[float, ...] = ()
    """``encode`` and ``generate`` of the same engine, without a clock."""
    generate_ms: tuple[float, ...] = ()
    """``load``, ``preprocess`` and the ``generate`` of Hugging Face."""
