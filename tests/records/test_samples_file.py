"""Torn tails are passed over, damage is not; a full disk loses no reported line."""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unfuse.errors import RunFolderError
from unfuse.records import Manifest, RunFolder, SampleRecord, to_line

MakeManifest = Callable[..., Manifest]
MakeRecord = Callable[..., SampleRecord]


@pytest.fixture
def run_path(tmp_path: Path, make_manifest: MakeManifest, make_record: MakeRecord) -> Path:
    with RunFolder.create(tmp_path / "run", make_manifest()) as run:
        for name in "abc":
            run.append(make_record(name))
    return tmp_path / "run"


def ids(path: Path) -> list[str]:
    return [record.sample_id for record in RunFolder.open(path).records()]


def test_every_truncation_leaves_the_whole_lines(run_path: Path) -> None:
    samples = run_path / "samples.jsonl"
    data = samples.read_bytes()
    for length in range(0, len(data) + 1, 7):
        samples.write_bytes(data[:length])
        assert ids(run_path) == list("abc")[: data[:length].count(b"\n")]


@pytest.mark.parametrize("tail", [b"{", b"\0" * 5000, b'{"sample_id": "d"}\n', b"\0\0\n", b"\xff\xfe", b"\n"])
def test_a_torn_tail_is_skipped_and_truncated(run_path: Path, make_manifest: MakeManifest, tail: bytes) -> None:
    samples = run_path / "samples.jsonl"
    data = samples.read_bytes()
    samples.write_bytes(data + tail)
    assert ids(run_path) == ["a", "b", "c"]
    assert RunFolder.open(run_path).torn_bytes() == len(tail)
    assert samples.read_bytes() == data + tail, "reading changes nothing"
    RunFolder.resume(run_path, make_manifest()).close()
    assert samples.read_bytes() == data


@pytest.mark.parametrize("number", [1, 2])
def test_damage_in_the_middle_is_an_error_with_its_line(
    run_path: Path, make_manifest: MakeManifest, number: int
) -> None:
    samples = run_path / "samples.jsonl"
    lines = samples.read_bytes().splitlines(keepends=True)
    lines[number - 1] = lines[number - 1].replace(b"928.2", b"928.3")
    samples.write_bytes(b"".join(lines))
    for read in (lambda: ids(run_path), lambda: RunFolder.resume(run_path, make_manifest())):
        with pytest.raises(RunFolderError, match=f"line {number}: found a damaged line"):
            read()
    assert samples.read_bytes() == b"".join(lines)


def test_a_whole_last_line_of_another_schema_is_no_torn_tail(run_path: Path, make_record: MakeRecord) -> None:
    fields = {**json.loads(to_line(make_record("d"))), "later": 1}
    del fields["line_crc32"]
    body = json.dumps(fields)
    with (run_path / "samples.jsonl").open("a") as file:
        file.write(f'{body[:-1]}, "line_crc32": {zlib.crc32(body.encode())}}}\n')
    with pytest.raises(RunFolderError, match=r"line 4: field 'later'"):
        ids(run_path)


def test_no_samples_file(run_path: Path) -> None:
    (run_path / "samples.jsonl").unlink()
    with pytest.raises(RunFolderError, match="No such file"):
        ids(run_path)


@pytest.mark.parametrize("failing", ["nothing written", "half written", "not synchronised"])
def test_a_full_disk_loses_no_reported_line(
    run_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_manifest: MakeManifest,
    make_record: MakeRecord,
    failing: str,
) -> None:
    real_write = os.write

    def write(descriptor: int, data: bytes) -> int:
        if failing == "half written":
            return real_write(descriptor, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fsync(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    samples = run_path / "samples.jsonl"
    before = samples.read_bytes()
    with RunFolder.resume(run_path, make_manifest()) as run:
        monkeypatch.setattr(os, *(("fsync", fsync) if failing == "not synchronised" else ("write", write)))
        with pytest.raises(RunFolderError, match=r"No space left|Input/output|bytes written"):
            run.append(make_record("d"))
        monkeypatch.undo()
        assert samples.read_bytes() == before
        assert "d" not in run.done_ids
        with pytest.raises(RunFolderError, match="Resume the run"):
            run.append(make_record("e"))
    with RunFolder.resume(run_path, make_manifest()) as run:
        run.append(make_record("d"))
    assert ids(run_path) == ["a", "b", "c", "d"]


def test_a_tail_that_cannot_be_truncated_is_left_for_resume(
    run_path: Path, monkeypatch: pytest.MonkeyPatch, make_manifest: MakeManifest, make_record: MakeRecord
) -> None:
    real_write = os.write

    def refuse(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    before = (run_path / "samples.jsonl").read_bytes()
    with RunFolder.resume(run_path, make_manifest()) as run:
        monkeypatch.setattr(os, "write", lambda descriptor, data: real_write(descriptor, data[:10]))
        monkeypatch.setattr(os, "ftruncate", refuse)
        with pytest.raises(RunFolderError):
            run.append(make_record("d"))
        monkeypatch.undo()
    assert RunFolder.open(run_path).torn_bytes() == 10
    RunFolder.resume(run_path, make_manifest()).close()
    assert (run_path / "samples.jsonl").read_bytes() == before


def test_one_line_is_one_write(
    run_path: Path, monkeypatch: pytest.MonkeyPatch, make_manifest: MakeManifest, make_record: MakeRecord
) -> None:
    calls: list[str] = []
    real = {"write": os.write, "fsync": os.fsync}
    with RunFolder.resume(run_path, make_manifest()) as run:
        for name, call in real.items():
            monkeypatch.setattr(os, name, lambda *a, _n=name, _c=call: (calls.append(_n), _c(*a))[1])
        run.append(make_record("d", text="x" * 100_000))
        monkeypatch.undo()
    assert calls == ["write", "fsync"]
