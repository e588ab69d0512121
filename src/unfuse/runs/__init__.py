"""What a run leaves behind: record types, and the folder that holds them."""

from unfuse.runs.baselines import BASELINES, Baselines
from unfuse.runs.comparison_folder import ComparisonFolder, read_comparison
from unfuse.runs.folder import RunFolder
from unfuse.runs.lines import from_line, to_line
from unfuse.runs.manifest import read_manifest
from unfuse.runs.place import refuse_occupied
from unfuse.runs.schema import (
    FUSED_STAGE,
    PROTOCOL_STAGES,
    RECORD_STAGES,
    SCHEMA_VERSION,
    STAGES,
    Energy,
    Finding,
    Isolation,
    Manifest,
    Noise,
    Probes,
    Profile,
    SampleRecord,
    StageEnergy,
    StageMemory,
    StageTime,
    Status,
    StepPass,
)

__all__ = [
    "BASELINES",
    "FUSED_STAGE",
    "PROTOCOL_STAGES",
    "RECORD_STAGES",
    "SCHEMA_VERSION",
    "STAGES",
    "Baselines",
    "ComparisonFolder",
    "Energy",
    "Finding",
    "Isolation",
    "Manifest",
    "Noise",
    "Probes",
    "Profile",
    "RunFolder",
    "SampleRecord",
    "StageEnergy",
    "StageMemory",
    "StageTime",
    "Status",
    "StepPass",
    "from_line",
    "read_comparison",
    "read_manifest",
    "refuse_occupied",
    "to_line",
]
