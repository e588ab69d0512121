"""``verification.json``: the rows of one ``unfuse verify``, written beside the run of the same model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from unfuse.errors import RunFolderError
from unfuse.records.atomic import write_json_atomic
from unfuse.records.conversion import read_record
from unfuse.records.schema import SCHEMA_VERSION

VERIFICATION_FILE: Final = "verification.json"
CheckStatus = Literal["pass", "fail", "skip", "inconclusive"]
"""``inconclusive``: noise of the machine hides the answer of a check that reads a clock."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult:
    """One check and how it came out: a row of ``unfuse verify``."""

    name: str
    status: CheckStatus
    expected: str
    observed: str
    tolerance: str = "exact"
    reason: str | None = None
    """Reason of a skip; what hides the answer of an inconclusive check, and the remedy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerificationRecord:
    """Checks of one model, with their time and the weights that they ran on."""

    created: str
    """ISO-8601, UTC."""
    command: tuple[str, ...]
    model: str
    fingerprint: str
    """Of config and tensors: rows belong to runs of these weights alone."""
    device: str
    dtype: str
    engine: str
    sample_id: str
    rows: tuple[CheckResult, ...]
    schema_version: str = SCHEMA_VERSION


def verification_path(output: Path) -> Path:
    """Return the file that ``--output`` means: inside a folder that exists, else the path itself.

    Raises:
        RunFolderError: there is no such folder to write into.
    """
    path = output / VERIFICATION_FILE if output.is_dir() else output
    if not path.parent.is_dir():
        raise RunFolderError(
            str(output), found=f"no folder {path.parent}", expected="a run folder, or a file in a folder that exists"
        )
    return path


def write_verification(path: Path, record: VerificationRecord) -> None:
    """Write the file as a whole; it replaces an earlier one.

    Raises:
        RunFolderError: it cannot be written.
    """
    write_json_atomic(path, record)


def read_verification(run: Path) -> VerificationRecord | None:
    """Read the verification of a run folder; None if there is none.

    Raises:
        RunFolderError: the file is damaged.
    """
    try:
        return read_record(VerificationRecord, run / VERIFICATION_FILE, expected="rows of a verification")
    except FileNotFoundError:
        return None
