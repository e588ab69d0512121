"""``verification.json``: the rows of one ``unfuse verify``, kept beside the run of the same model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from unfuse.errors import RunFolderError
from unfuse.runs.atomic import write_json_atomic
from unfuse.runs.plain import from_plain, parse_object
from unfuse.runs.schema import SCHEMA_VERSION
from unfuse.runs.version import is_newer_minor

VERIFICATION_FILE: Final = "verification.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckRow:
    """One check and how it came out."""

    name: str
    status: Literal["pass", "fail", "skip"]
    expected: str
    observed: str
    tolerance: str
    reason: str | None = None
    """Why it was skipped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerificationRecord:
    """What was checked, when, and on which weights."""

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
    rows: tuple[CheckRow, ...]
    schema_version: str = SCHEMA_VERSION


def verification_place(output: Path) -> Path:
    """The file that ``--output`` means: inside a folder that exists, else the path itself.

    Raises:
        RunFolderError: there is no such folder to write into.
    """
    place = output / VERIFICATION_FILE if output.is_dir() else output
    if not place.parent.is_dir():
        raise RunFolderError(
            str(output), found=f"no folder {place.parent}", expected="a run folder, or a file in a folder that exists"
        )
    return place


def write_verification(place: Path, record: VerificationRecord) -> None:
    """Writes the file as a whole; an earlier one is replaced.

    Raises:
        RunFolderError: it cannot be written.
    """
    write_json_atomic(place, record)


def read_verification(run: Path) -> VerificationRecord | None:
    """What lies in a run folder; None where nothing does.

    Raises:
        RunFolderError: the file is damaged.
    """
    path = run / VERIFICATION_FILE
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunFolderError(
            str(path), found=f"cannot be read ({error.strerror})", expected="rows of a verification"
        ) from error
    value = parse_object(text, where=str(path))
    lenient = is_newer_minor(value.get("schema_version"), where=str(path))
    return from_plain(VerificationRecord, value, where=str(path), ignore_unknown=lenient)
