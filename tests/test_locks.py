"""One process holds a lock; a killed process leaves none."""

from __future__ import annotations

import os
import signal

import pytest

from unfuse.locks import FileLock, LockedError


def holding(path):
    """Return a process that holds the lock until it is killed."""
    ready, started = os.pipe()
    pid = os.fork()
    if pid == 0:
        FileLock(path)
        os.write(started, b"1")
        signal.pause()
        os._exit(0)
    os.close(started)
    assert os.read(ready, 1) == b"1"
    os.close(ready)
    return pid


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_another_process_is_refused_until_the_holder_is_killed(tmp_path):
    pid = holding(tmp_path / "lock")
    try:
        for _ in range(2):
            with pytest.raises(LockedError):
                FileLock(tmp_path / "lock")
    finally:
        kill(pid)
    with FileLock(tmp_path / "lock"), pytest.raises(LockedError):
        FileLock(tmp_path / "lock", wait_s=0.01)
    FileLock(tmp_path / "lock").release()


def test_a_removed_lock_is_free_and_a_late_holder_does_not_share_it(tmp_path):
    """A process that opened the file before its removal must not hold a lock that nobody else can see."""
    first = FileLock(tmp_path / "lock")
    first.remove()
    assert not (tmp_path / "lock").exists()
    second = FileLock(tmp_path / "lock")
    with pytest.raises(LockedError):
        FileLock(tmp_path / "lock")
    second.release()
    second.release()


def test_the_file_changes_hands_while_another_waits(tmp_path, monkeypatch):
    from unfuse import locks

    first, asked = FileLock(tmp_path / "lock"), []
    has_name = locks._has_name

    def removed_meanwhile(descriptor, path):
        if not asked:
            path.unlink()
        asked.append(descriptor)
        return has_name(descriptor, path)

    first.release()
    monkeypatch.setattr(locks, "_has_name", removed_meanwhile)
    with FileLock(tmp_path / "lock"), pytest.raises(LockedError):
        FileLock(tmp_path / "lock")
    assert len(asked) >= 2


def test_a_shared_lock(tmp_path):
    first = FileLock(tmp_path / "lock", may_share=True)
    assert first.is_exclusive()
    with pytest.raises(LockedError):
        FileLock(tmp_path / "lock", may_share=True)
    first.share()
    second = FileLock(tmp_path / "lock", may_share=True)
    assert not second.is_exclusive()
    with pytest.raises(LockedError):
        FileLock(tmp_path / "lock")
    second.remove()
    assert (tmp_path / "lock").exists()
    assert first.is_exclusive()
    first.remove()
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
def test_the_file_is_private(tmp_path, umask):
    before = os.umask(umask)
    try:
        FileLock(tmp_path / "lock").release()
    finally:
        os.umask(before)
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600


def test_a_link_or_a_missing_folder_is_an_error(tmp_path):
    (tmp_path / "lock").symlink_to("elsewhere")
    for path in (tmp_path / "lock", tmp_path / "missing" / "lock"):
        with pytest.raises(OSError):  # noqa: PT011 - any reason of the system's
            FileLock(path)
    assert not (tmp_path / "elsewhere").exists()
