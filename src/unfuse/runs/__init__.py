"""What a run leaves behind: record types, and the folder that holds them."""

from unfuse.runs.folder import RunFolder
from unfuse.runs.lines import from_line, to_line
from unfuse.runs.manifest import read_manifest
from unfuse.runs.place import refuse_occupied
from unfuse.runs.schema import (
    FUSED_STAGE,
    RECORD_STAGES,
    SCHEMA_VERSION,
    STAGES,
    Manifest,
    Noise,
    SampleRecord,
    StageTime,
    Status,
)

__all__ = [
    "FUSED_STAGE",
    "RECORD_STAGES",
    "SCHEMA_VERSION",
    "STAGES",
    "Manifest",
    "Noise",
    "RunFolder",
    "SampleRecord",
    "StageTime",
    "Status",
    "from_line",
    "read_manifest",
    "refuse_occupied",
    "to_line",
]
