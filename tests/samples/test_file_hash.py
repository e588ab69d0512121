"""A changed byte is seen, whatever size and times say; an unchanged file is read once."""

from __future__ import annotations

import hashlib
import os
import time
from types import SimpleNamespace

import pytest

from unfuse.errors import FileAccessError
from unfuse.samples import file_hash
from unfuse.samples.file_hash import file_sha256

LATER_NS = 3_000_000_000
"""Longer ago than the coarsest clock's step."""


class Disk:
    """Clocks of the process, and times of files that are as coarse as those of the worst file systems."""

    def __init__(self, monkeypatch, step_ns):
        self.wall_ns, self.monotonic_ns, self.reads = 1_000 * 10**9, 0, 0
        self._step_ns, self._written, self._fstat = step_ns, {}, os.fstat
        fake = SimpleNamespace(time_ns=lambda: self.wall_ns, monotonic_ns=lambda: self.monotonic_ns)
        monkeypatch.setattr(file_hash, "time", fake)
        monkeypatch.setattr(file_hash, "os", SimpleNamespace(fstat=self._stat))
        digest = hashlib.file_digest
        monkeypatch.setattr(file_hash.hashlib, "file_digest", lambda *given: (self._count(), digest(*given))[1])
        monkeypatch.setattr(file_hash, "_cached", {})

    def sleep(self, ns):
        self.wall_ns += ns
        self.monotonic_ns += ns

    def write(self, path, data):
        """Write in place: inode and size stay."""
        with path.open("r+b" if path.exists() else "wb") as file:
            file.write(data)
        self._written[path.stat().st_ino] = self.wall_ns // self._step_ns * self._step_ns

    def _stat(self, descriptor):
        found = self._fstat(descriptor)
        at = self._written[found.st_ino]
        return SimpleNamespace(
            st_dev=found.st_dev, st_ino=found.st_ino, st_size=found.st_size, st_mtime_ns=at, st_ctime_ns=at
        )

    def _count(self):
        self.reads += 1


@pytest.fixture(params=[1, 10**6, 10**9, 2 * 10**9])
def disk(monkeypatch, request):
    return Disk(monkeypatch, request.param)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def test_an_unchanged_file_is_read_once(disk, tmp_path):
    disk.write(tmp_path / "a", b"1")
    disk.sleep(2 * LATER_NS)
    assert {file_sha256(tmp_path / "a") for _ in range(5)} == {sha256(b"1")}
    assert disk.reads == 1


@pytest.mark.parametrize("wait_ns", [0, 1, 10**6, 10**9, 2 * 10**9, 2 * LATER_NS])
def test_a_file_that_is_written_again_is_read_again(disk, tmp_path, wait_ns):
    """Within a step of the file system's clock, its times stay."""
    for digit in b"0123456789":
        disk.write(tmp_path / "a", bytes([digit]))
        disk.sleep(wait_ns)
        assert file_sha256(tmp_path / "a") == sha256(bytes([digit]))


def test_the_clock_set_back(disk, tmp_path):
    """A later write may get the time of an earlier one."""
    disk.write(tmp_path / "a", b"1")
    disk.sleep(2 * LATER_NS)
    assert file_sha256(tmp_path / "a") == sha256(b"1")
    disk.wall_ns -= 2 * LATER_NS
    disk.write(tmp_path / "a", b"2")
    assert file_sha256(tmp_path / "a") == sha256(b"2")
    disk.sleep(2 * LATER_NS)
    assert file_sha256(tmp_path / "a") == sha256(b"2")


def test_a_file_that_changes_as_it_is_read_is_not_cached(disk, tmp_path, monkeypatch):
    disk.write(tmp_path / "a", b"1")
    disk.sleep(2 * LATER_NS)
    read = file_hash.hashlib.file_digest

    def overtaken(*given):
        found = read(*given)
        disk.write(tmp_path / "a", b"2")
        return found

    with monkeypatch.context() as patched:
        patched.setattr(file_hash.hashlib, "file_digest", overtaken)
        file_sha256(tmp_path / "a")
    assert file_sha256(tmp_path / "a") == sha256(b"2")


def settled(path, data):
    path.write_bytes(data)
    return path


@pytest.fixture
def old_files(monkeypatch):
    """Files that were written longer ago than any step of a clock."""
    monkeypatch.setattr(file_hash, "_RECENT_NS", -1)
    monkeypatch.setattr(file_hash, "_cached", {})


def test_rename_links_and_restored_times(old_files, tmp_path):
    path = settled(tmp_path / "a", b"1")
    assert file_sha256(path) == sha256(b"1")
    other = settled(tmp_path / "b", b"2")
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)
    assert file_sha256(path) == sha256(b"2"), "renamed over"
    (tmp_path / "hard").hardlink_to(path)
    at = path.stat()
    time.sleep(0.02)  # a step of the kernel's clock
    with (tmp_path / "hard").open("r+b") as file:
        file.write(b"3")
    os.utime(path, ns=(at.st_atime_ns, at.st_mtime_ns))
    assert file_sha256(path) == sha256(b"3"), "written through a hard link, its time restored"
    link = tmp_path / "link"
    link.symlink_to(path)
    assert file_sha256(link) == sha256(b"3")
    link.unlink()
    link.symlink_to(settled(tmp_path / "c", b"4"))
    assert file_sha256(link) == sha256(b"4"), "another target"


def test_what_cannot_be_read(tmp_path):
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(FileAccessError):
            file_sha256(path)
