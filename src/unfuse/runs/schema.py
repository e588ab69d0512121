"""The record of a benchmark: what one line of ``samples.jsonl`` and one ``run.json`` hold.

One schema, versioned. Units are in the field names; a number that was not measured is ``None``, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from unfuse.stages import STAGES

__all__ = [
    "ANSWERS_PROTOCOL",
    "FUSED_STAGE",
    "PROTOCOL_STAGES",
    "RECORD_STAGES",
    "SCHEMA_VERSION",
    "STAGES",
    "Ceilings",
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
    "StageWork",
    "Status",
    "StepPass",
]

SCHEMA_VERSION: Final = "1.4"
"""Additive changes raise the minor number; a changed or removed field raises the major one."""

FUSED_STAGE: Final = "fused_generate"
"""``encode`` + ``prefill`` + ``decode`` where they were timed as one call (protocol ``fused``)."""

RECORD_STAGES: Final = (*STAGES, FUSED_STAGE)
"""Every stage that a record may hold a time of."""

_FUSED_STAGES: Final = ("load", "preprocess", FUSED_STAGE)
PROTOCOL_STAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "decoupled": STAGES,
    "fused": _FUSED_STAGES,
    "hooked": _FUSED_STAGES,
    "reencode": ("load", "preprocess", "encode", FUSED_STAGE),
}
"""Stages that each protocol times, in order."""
ANSWERS_PROTOCOL: Final = "answers"
"""In the place of a protocol where nothing was measured sample by sample: ``unfuse run``."""

Status = Literal["ok", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StageTime:
    """Time of one stage or sub-span of one sample."""

    host_ms: float
    """Host wall clock between synchronised edges (sub-spans: between unsynchronised ones)."""
    device_ms: float | None = None
    """Between device events; None without a device clock, or where the stage gives the device no work."""
    start_ms: float | None = None
    """Host time of its beginning, since ``Manifest.created``."""
    device_start_ms: float | None = None
    """The same of its first device event, which the stage's own beginning sets to the host's clock."""
    entries: tuple[StageTime, ...] = ()
    """Of a sub-span entered several times, each one; the other fields then hold the sums and the first beginning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRecord:
    """One line of ``samples.jsonl``."""

    sample_id: str
    status: Status
    warmup: bool = False
    """True for repeats made to reach the steady state; they never enter a statistic."""
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
    """Its beginning, as ``StageTime.start_ms``."""
    question: str | None = None
    media: str | None = None
    """What was given to the model: ``event_data``, ``event_image``, ``frames``, ..."""
    media_sha256: str | None = None
    num_events: int | None = None
    num_frames: int | None = None
    text_tokens: int | None = None
    media_tokens: int | None = None
    frame_size: tuple[int, ...] | None = None
    """(height, width) of the first frame, before preprocessing."""
    pixels: tuple[int, ...] | None = None
    """Shape of what the vision tower takes in."""
    output_tokens: int | None = None
    reused_prefix_tokens: int | None = None
    token_ids: tuple[int, ...] | None = None
    text: str | None = None
    stop_reason: str | None = None
    reference: str | None = None
    """The dataset's own answer, where it has one."""
    e2e_same_tokens: bool | None = None
    """Whether the unstaged call gave the same token ids."""
    notes: tuple[str, ...] = ()
    disturbances: tuple[str, ...] = ()
    """What the isolation guard saw after it: other work on the device or the CPU, clocks held down."""

    @property
    def total_host_ms(self) -> float:
        """Sum of the stages' host times, in ms."""
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
    """The same of repeats for the balance alone, of a few tokens where whole runs take long; in no other statistic."""
    short_e2e_host_ms: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class StageMemory:
    """Memory of one stage of one sample, in bytes."""

    peak_bytes: int
    """Most that was held at any moment of the stage, weights among it."""
    resident_bytes: int
    """Held when the stage had ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageWork:
    """The least that a stage has to do for one sample."""

    flops: int
    """Multiplications and additions of its matrix products."""
    least_bytes: int
    """To and from memory: weights, cache, inputs and outputs, each as often as it cannot be avoided."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceilings:
    """The most that the device did when it did nothing else."""

    bytes_per_s: float
    """Of a large buffer, read or copied."""
    flops_per_s: float
    """Of a large matrix product in the model's dtype."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPass:
    """One sample run once more after the samples, in no statistic: the steps of its answer and its memory over time."""

    sample_id: str
    stages: Mapping[str, StageTime]
    spans: Mapping[str, StageTime] = field(default_factory=dict)
    token_ms: tuple[float, ...] = ()
    """When each new token was on the host, as ``StageTime.start_ms``; none where the protocol has no decode."""
    memory_ms: tuple[float, ...] = ()
    """When memory was read, as ``StageTime.start_ms``."""
    memory_bytes: tuple[int, ...] = ()
    """What was held then, as ``Probes.memory_source`` counts it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageEnergy:
    """Energy of one stage of one sample, by repeating it."""

    joules: float
    """Energy of the whole board for one call, idle draw included."""
    resolution_joules: float
    """Bound: the steps of the counter can put ``joules`` off by at most this, either way."""
    calls: int
    seconds: float
    """Time of all calls together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Energy:
    """Energy by stage, or why there is none."""

    reason: str | None = None
    """Why nothing was measured."""
    source: str | None = None
    sample_id: str | None = None
    output_tokens: int | None = None
    """New tokens of each answer that was measured."""
    stages: Mapping[str, StageEnergy] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    """Stages without a number, and why."""
    idle_watts: float | None = None
    """Drawn while the loaded model did nothing; part of every stage's joules."""
    counter_period_ms: float | None = None
    """Median time between two changes of the counter, as measured."""
    counter_step_mj: float | None = None
    """Median change of the idle counter, as measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that kept a run from having the machine to itself."""

    rule: str
    """``gpu-processes``, ``gpu-busy``, ``gpu-throttled``, ``cpu-busy`` or ``cpu-load``."""
    detail: str
    """How much."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Isolation:
    """One look at who else uses the machine."""

    findings: tuple[Finding, ...] = ()
    unseen: Mapping[str, str] = field(default_factory=dict)
    """Rules that could not be looked at, and why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """What ``profile.json`` holds, or why there is none."""

    reason: str | None = None
    sample_id: str | None = None
    output_tokens: int | None = None
    num_events: int = 0
    num_kernels: int = 0
    """Work on the device among them."""
    num_left_out: int = 0
    """The shortest ones, where there were too many for a file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probes:
    """``probes.json``: what was measured beside the samples, once a run."""

    noise: Noise | None = None
    memory: Mapping[str, StageMemory] = field(default_factory=dict)
    """By stage, of one untimed pass over one warm sample."""
    memory_source: str | None = None
    """Whose count it is: the CUDA allocator's, or the process's as the system sees it."""
    encoder_calls_after_encode: int | None = None
    """Calls of vision modules in what the protocol times as Stage 4, of one untimed pass; 0 where features are used."""
    work: Mapping[str, StageWork] = field(default_factory=dict)
    """By stage, of one sample."""
    work_sample_id: str | None = None
    ceilings: Ceilings | None = None
    steps: tuple[StepPass, ...] = ()
    energy: Energy | None = None
    isolation: Isolation | None = None
    """After everything else; the look at the start is in ``Manifest.environment``, those between in the samples."""
    profile: Profile | None = None
    """None where none was asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """``run.json``: everything needed to argue with a run, or to resume it."""

    run_id: str
    created: str
    """ISO-8601, UTC."""
    command: tuple[str, ...]
    protocol: str
    config: Mapping[str, Any]
    """Every option in force: dataset, max_samples, max_new_tokens, temperature, seed, num_warmups, ..."""
    model: Mapping[str, Any]
    """``name``, ``family``, ``fingerprint``, ``device``, ``dtype``, ``engine``, ``notes``."""
    dataset: Mapping[str, Any]
    """``path``, ``sha256`` (of every file used, hashed together), ``num_samples``."""
    environment: Mapping[str, Any]
    """As ``unfuse.measure.environment`` gives it; ``code_version`` and ``device_name`` among it."""
    schema_version: str = SCHEMA_VERSION
    clock: Mapping[str, Any] = field(default_factory=dict)
    """``resolution_ns``, ``edge_cost_ms`` (host cost of one stage's two edges), and how it was measured."""
    resumed: tuple[str, ...] = ()
    """When a cut-off run was continued, ISO-8601, UTC; its samples then come from several processes."""
