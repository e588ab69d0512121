"""A file appears complete or not at all."""

from __future__ import annotations

import os

import pytest

from unfuse.atomic_files import complete_file, is_partial, remove_partials


@pytest.mark.parametrize(("private", "mode"), [(True, 0o600), (False, 0o640)])
@pytest.mark.parametrize("durable", [False, True])
def test_the_file_appears_at_the_end_with_its_permissions(tmp_path, durable, private, mode):
    path = tmp_path / "file.txt"
    path.write_text("before")
    mask = os.umask(0o027)
    try:
        with complete_file(path, durable=durable, private=private) as partial:
            partial.write_text("after")
            assert path.read_text() == "before"
    finally:
        os.umask(mask)
    assert path.read_text() == "after"
    assert path.stat().st_mode & 0o777 == mode
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_earlier_file(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("before")

    def fail(partial):
        partial.write_text("half")
        raise error

    with pytest.raises(error), complete_file(path) as partial:
        fail(partial)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError), complete_file(tmp_path / "missing" / "file.txt"):
        pass


def test_files_of_killed_processes_are_recognized_and_removed(tmp_path):
    names = []
    for name in ("file.txt", ".begun.json"):
        manager = complete_file(tmp_path / name)
        names.append(manager.__enter__().name)  # and the process is killed
    assert all(map(is_partial, names))
    others = {
        "file.txt",
        "a.partial",
        ".partial",
        ".file.txt.partial",
        ".file.0123456.partial",
        ".file.0123456g.partial",
    }
    for name in others:
        (tmp_path / name).touch()
    remove_partials(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == others
    remove_partials(tmp_path / "missing")
