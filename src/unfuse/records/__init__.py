"""Records of a run: their types, and the folder that holds them."""

from unfuse.records.baselines import BASELINES, Baselines
from unfuse.records.comparison_folder import ComparisonFolder, read_comparison
from unfuse.records.folder import RunFolder
from unfuse.records.manifest import read_manifest
from unfuse.records.run_dir import refuse_occupied
from unfuse.records.samples_file import from_line, to_line
from unfuse.records.schema import (
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
