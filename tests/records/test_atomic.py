"""A file is there whole or not at all, and a failed write says why."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from unfuse.errors import RunFolderError
from unfuse.records.atomic import write_json_atomic, write_text_atomic


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    write_text_atomic(path, "old")
    write_text_atomic(path, "new: é \ud800")
    assert path.read_text(encoding="utf-8") == "new: é \\ud800"
    assert os.listdir(tmp_path) == ["report.md"]  # noqa: PTH208


def test_json_ends_with_a_line_end_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json_atomic(path, {"a": (1, 2.5, None), "path": tmp_path})
    assert path.read_text().endswith("}\n")
    assert json.loads(path.read_text()) == {"a": [1, 2.5, None], "path": str(tmp_path)}


@pytest.mark.parametrize(("private", "mode"), [(True, 0o600), (False, 0o640)])
def test_only_a_public_file_follows_the_umask(tmp_path: Path, private: bool, mode: int) -> None:
    before = os.umask(0o027)
    try:
        write_text_atomic(tmp_path / "a", "", private=private)
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_what_is_no_json_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(RunFolderError, match="deep"):
        write_json_atomic(tmp_path / "a.json", {"deep": [value]})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", ["write", "fsync", "replace", "open"])
def test_a_failure_keeps_the_old_file_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "summary.json"
    write_text_atomic(path, "old")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((Path, "replace") if call == "replace" else (os, call)), full)
    with pytest.raises(RunFolderError, match="No space left on device"):
        write_text_atomic(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:3]))
    write_text_atomic(tmp_path / "a", "0123456789")
    assert (tmp_path / "a").read_text() == "0123456789"


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="Not a directory"):
        write_text_atomic(tmp_path / "file" / "a", "")
