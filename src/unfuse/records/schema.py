"""The records of a benchmark: ``run.json``, a line of ``samples.jsonl``, and ``probes.json``.

One versioned schema. Units are in the field names; a number that was not measured is ``None``, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from unfuse.records.work_records import Ceilings, CountedWork, Price, Reuse, StageWork
from unfuse.stages import STAGES

__all__ = [
    "ANSWERS_PROTOCOL",
    "FUSED_STAGE",
    "PROTOCOL_STAGES",
    "RECORD_STAGES",
    "SCHEMA_VERSION",
    "STAGES",
    "Energy",
    "Finding",
    "Isolation",
    "Manifest",
    "Noise",
    "Probes",
    "Profile",
    "SampleRecord",
    "StageEnergy",
    "StageMemory",
    "StageTime",
    "Status",
    "StepPass",
]

SCHEMA_VERSION: Final = "1.6"
"""A new field raises the minor number; a changed or removed field raises the major number."""

FUSED_STAGE: Final = "fused_generate"
"""``encode`` + ``prefill`` + ``decode``, timed as one call (protocol ``fused``)."""

RECORD_STAGES: Final = (*STAGES, FUSED_STAGE)
"""Every stage that may have a time in a record."""

_FUSED_STAGES: Final = ("load", "preprocess", FUSED_STAGE)
PROTOCOL_STAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "decoupled": STAGES,
    "fused": _FUSED_STAGES,
    "hooked": _FUSED_STAGES,
    "reencode": ("load", "preprocess", "encode", FUSED_STAGE),
}
"""Stages timed by each protocol, in order."""
ANSWERS_PROTOCOL: Final = "answers"
"""``Manifest.protocol`` of ``unfuse run``; it measures no single sample."""

Status = Literal["ok", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StageTime:
    """Time of one stage or sub-span of one sample."""

    host_ms: float
    """Host wall clock between synchronised edges (sub-spans: between unsynchronised ones)."""
    device_ms: float | None = None
    """Between device events; None without a device clock, or where the stage gives the device no work."""
    start_ms: float | None = None
    """Host time of its start, since ``Manifest.created``."""
    device_start_ms: float | None = None
    """Start of its first device event, since ``Manifest.created``; the stage's start aligns both clocks."""
    entries: tuple[StageTime, ...] = ()
    """Entries of a sub-span that was entered several times; the other fields are then sums and the first start."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRecord:
    """One line of ``samples.jsonl``."""

    sample_id: str
    status: Status
    warmup: bool = False
    """True for repeats before the steady state; they never enter a statistic."""
    error: str | None = None
    stages: Mapping[str, StageTime] = field(default_factory=dict)
    """By stage name; written as ``<stage>_host_ms`` and ``<stage>_device_ms``."""
    spans: Mapping[str, StageTime] = field(default_factory=dict)
    """Sub-spans by ``stage.name``, e.g. ``load.rasterise``; written as an object of its own."""
    staged_host_ms: float | None = None
    """Wall clock around the staged run; with ``e2e_host_ms`` it gives the cost of the clock's own edges."""
    e2e_host_ms: float | None = None
    """The separate, unstaged call on the same sample."""
    e2e_start_ms: float | None = None
    """Start of that call, as ``StageTime.start_ms``."""
    question: str | None = None
    media: str | None = None
    """Kind of media given to the model: ``event_data``, ``event_image``, ``frames``, ..."""
    media_sha256: str | None = None
    num_events: int | None = None
    num_frames: int | None = None
    text_tokens: int | None = None
    media_tokens: int | None = None
    frame_size: tuple[int, ...] | None = None
    """(height, width) of the first frame, before preprocessing."""
    pixels: tuple[int, ...] | None = None
    """Shape of the vision tower's input."""
    output_tokens: int | None = None
    reused_prefix_tokens: int | None = None
    draft_tokens: int | None = None
    """Tokens drafted by speculation, and verified by the decode passes; None without speculation."""
    accepted_tokens: int | None = None
    """Drafted tokens that are tokens of the answer."""
    decode_passes: int | None = None
    """Passes of ``decode``: each gives its accepted tokens and a token of the model's own."""
    accepted_by_pass: tuple[int, ...] | None = None
    """Accepted tokens of each decode pass."""
    drafting_ms: float | None = None
    """Time that the host spent on drafts."""
    answer_known: bool | None = None
    """True if an earlier sample of the run, or the history file, had an equal answer."""
    token_ids: tuple[int, ...] | None = None
    text: str | None = None
    stop_reason: str | None = None
    reference: str | None = None
    """Reference answer of the dataset, where it has one."""
    e2e_same_tokens: bool | None = None
    """Whether the unstaged call gave equal token ids."""
    notes: tuple[str, ...] = ()
    disturbances: tuple[str, ...] = ()
    """Findings of the isolation guard after the sample: other work on the device or the CPU, throttled clocks."""

    @property
    def total_host_ms(self) -> float:
        """Sum of the host times of all stages, in ms."""
        return sum(t.host_ms for t in self.stages.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """Repeats of one sample in the steady state: the only spread that is noise, not workload."""

    sample_id: str
    total_host_ms: tuple[float, ...]
    """Sums of the stages, one per repeat."""
    e2e_host_ms: tuple[float, ...]
    """Unstaged calls, each made next to the staged repeat of the same index."""
    short_total_host_ms: tuple[float, ...] = ()
    """Sums of repeats of a few tokens, in runs before schema 1.6; no statistic uses them."""
    short_e2e_host_ms: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class StageMemory:
    """Memory of one stage of one sample, in bytes."""

    peak_bytes: int
    """Largest allocation during the stage, weights included."""
    resident_bytes: int
    """Allocation at the end of the stage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPass:
    """One more run of a sample, in no statistic: times of its tokens and its memory over time."""

    sample_id: str
    stages: Mapping[str, StageTime]
    spans: Mapping[str, StageTime] = field(default_factory=dict)
    token_ms: tuple[float, ...] = ()
    """Arrival of each new token on the host, as ``StageTime.start_ms``; empty where the protocol has no decode."""
    memory_ms: tuple[float, ...] = ()
    """Times of the memory readings, as ``StageTime.start_ms``."""
    memory_bytes: tuple[int, ...] = ()
    """Memory readings, as ``Probes.memory_source`` counts them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageEnergy:
    """Energy of one stage of one sample, over many calls."""

    joules: float
    """Energy of the whole board for one call, idle power included."""
    resolution_joules: float
    """Largest error of ``joules`` from the steps of the counter."""
    calls: int
    seconds: float
    """Total time of all calls."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Energy:
    """Energy by stage, or the reason why there is none."""

    reason: str | None = None
    """Reason why nothing was measured."""
    source: str | None = None
    sample_id: str | None = None
    output_tokens: int | None = None
    """New tokens of each measured answer."""
    stages: Mapping[str, StageEnergy] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    """Reasons of the stages without a number."""
    idle_watts: float | None = None
    """Power while the loaded model is idle; part of every stage's joules."""
    counter_period_ms: float | None = None
    """Measured median time between two changes of the counter."""
    counter_step_mj: float | None = None
    """Measured median change of the idle counter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One sign of other work on the machine."""

    rule: str
    """``gpu-processes``, ``gpu-busy``, ``gpu-throttled``, ``cpu-busy`` or ``cpu-load``."""
    detail: str
    """Measured value and its limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Isolation:
    """One check for other work on the machine."""

    findings: tuple[Finding, ...] = ()
    unseen: Mapping[str, str] = field(default_factory=dict)
    """Rules that could not be checked, with the reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """Content of ``profile.json``, or the reason why there is none."""

    reason: str | None = None
    sample_id: str | None = None
    output_tokens: int | None = None
    num_events: int = 0
    num_kernels: int = 0
    """Events on the device."""
    num_left_out: int = 0
    """Shortest events, left out where there were too many for a file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probes:
    """``probes.json``: measurements made once a run, beside the samples."""

    noise: Noise | None = None
    memory: Mapping[str, StageMemory] = field(default_factory=dict)
    """By stage, of one untimed pass over one warm sample."""
    memory_source: str | None = None
    """Counter of the memory: the CUDA allocator, or the process as the system sees it."""
    encoder_calls_after_encode: int | None = None
    """Calls of vision modules in the protocol's Stage 4, of one untimed pass; 0 where features are used."""
    work: Mapping[str, StageWork] = field(default_factory=dict)
    """By stage, of one sample."""
    work_sample_id: str | None = None
    counted_work: CountedWork | None = None
    """Executed work of the stages, of one untimed pass; None where the protocol has other stages."""
    ceilings: Ceilings | None = None
    steps: tuple[StepPass, ...] = ()
    energy: Energy | None = None
    isolation: Isolation | None = None
    """Check at the end; the first check is in ``Manifest.environment``, the others are in the samples."""
    price: Price | None = None
    """None in runs before schema 1.6, and for protocols without separate stages."""
    reuse: Reuse | None = None
    """None in runs before schema 1.6."""
    profile: Profile | None = None
    """None where no profile was requested."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """``run.json``: everything needed to reproduce, judge or resume a run."""

    run_id: str
    created: str
    """ISO-8601, UTC."""
    command: tuple[str, ...]
    protocol: str
    config: Mapping[str, Any]
    """Every option in force: dataset, max_samples, max_new_tokens, temperature, seed, num_warmups, ..."""
    model: Mapping[str, Any]
    """``name``, ``family``, ``fingerprint``, ``settings_sha256``, ``device``, ``dtype``, ``engine``, ``notes``."""
    dataset: Mapping[str, Any]
    """``path``, ``sha256`` (of every file used, hashed together), ``num_samples``."""
    environment: Mapping[str, Any]
    """Result of ``unfuse.measure.environment``, with ``code_version`` and ``device_name``."""
    schema_version: str = SCHEMA_VERSION
    clock: Mapping[str, Any] = field(default_factory=dict)
    """``resolution_ns``, ``edge_cost_ms`` (host cost of one stage's two edges), and how it was measured."""
    resumed: tuple[str, ...] = ()
    """Times when the run was resumed, ISO-8601, UTC; its samples then come from several processes."""
