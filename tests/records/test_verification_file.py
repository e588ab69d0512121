"""Rows of a verification, written and read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from unfuse.errors import RunFolderError
from unfuse.records.verification_file import (
    VERIFICATION_FILE,
    CheckResult,
    VerificationRecord,
    read_verification,
    verification_path,
    write_verification,
)

RECORD = VerificationRecord(
    created="2026-01-01T00:00:00+00:00",
    command=("unfuse", "verify", "demo"),
    model="demo",
    fingerprint="f" * 64,
    device="cpu",
    dtype="float32",
    engine="eager",
    sample_id="demo:0",
    rows=(
        CheckResult(name="encode-once", status="pass", expected="one call", observed="one call", tolerance="exact"),
        CheckResult(
            name="golden", status="skip", expected="x", observed="not run", tolerance="exact", reason="none given"
        ),
    ),
)


def test_round_trip(tmp_path: Path) -> None:
    assert read_verification(tmp_path) is None
    write_verification(verification_path(tmp_path), RECORD)
    assert read_verification(tmp_path) == RECORD


def test_paths(tmp_path: Path) -> None:
    assert verification_path(tmp_path) == tmp_path / VERIFICATION_FILE
    assert verification_path(tmp_path / "rows.json") == tmp_path / "rows.json"
    with pytest.raises(RunFolderError, match="no folder"):
        verification_path(tmp_path / "none" / "rows.json")


@pytest.mark.parametrize("text", ["", "[]", '{"created": 1}', '{"schema_version": "9.0"}'])
def test_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / VERIFICATION_FILE).write_text(text)
    with pytest.raises(RunFolderError, match=VERIFICATION_FILE):
        read_verification(tmp_path)
