"""A baseline appears whole under a name that is a name, and no baseline is lost."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unfuse.errors import InputError, RunFolderError
from unfuse.records import Baselines, RunFolder, baselines


@pytest.fixture
def run(tmp_path, make_manifest, make_record):
    def make(name="run"):
        with RunFolder.create(tmp_path / name, make_manifest(run_id=name)) as folder:
            folder.append(make_record())
            folder.write_summary({})
        return tmp_path / name

    return make


@pytest.fixture
def store(tmp_path):
    return Baselines(tmp_path / "baselines")


def test_saved_and_found(store, run, make_record):
    path = store.save("main", run())
    assert store.names() == ("main",)
    assert store.find("main") == path
    assert RunFolder.open(path).records() == [make_record()]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/tmp/x", ".hidden", "-x", "a\n", "a b", "x" * 65, "ä"])
def test_what_is_no_name(store, run, name):
    for call in (lambda: store.save(name, run()), lambda: store.find(name)):
        with pytest.raises(InputError, match="a name of letters"):
            call()
    assert not store.folder.exists()


@given(st.text(max_size=20))
def test_a_name_leads_nowhere_else(name):
    try:
        baselines.check_name(name)
    except InputError:
        return
    assert (Path("/baselines") / name).parent == Path("/baselines")
    assert os.path.normpath(f"/baselines/{name}") == f"/baselines/{name}"
    assert name.isprintable()


def test_never_overwritten_unasked(store, run):
    store.save("main", run("one"))
    with pytest.raises(RunFolderError, match="--replace"):
        store.save("main", run("two"))
    assert RunFolder.open(store.find("main")).manifest.run_id == "one"
    store.save("main", tmp := store.folder.parent / "two", replace=True)
    assert RunFolder.open(store.find("main")).manifest.run_id == tmp.name


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_baseline_is_not_replaced(store, run, kind):
    path = store.folder / "main"
    store.folder.mkdir()
    mine = store.folder.parent / "mine"
    mine.mkdir()
    {"file": path.touch, "folder": path.mkdir, "link": lambda: path.symlink_to(mine)}[kind]()
    with pytest.raises(RunFolderError, match="no baseline"):
        store.save("main", run(), replace=True)
    assert path.exists()
    assert store.names() == ()


def test_a_damaged_run_is_no_baseline(store, run):
    store.save("main", run("one"))
    damaged = run("two")
    (damaged / "samples.jsonl").write_bytes(b"x" + (damaged / "samples.jsonl").read_bytes() + b"\n")
    with pytest.raises(RunFolderError, match="line 1"):
        store.save("main", damaged, replace=True)
    assert RunFolder.open(store.find("main")).manifest.run_id == "one"
    assert [p.name for p in store.folder.iterdir()] == ["main"]


@pytest.mark.parametrize("step", range(3))
def test_a_failing_disk_loses_no_baseline(store, run, monkeypatch, step):
    """If any step of the replacement fails, the old baseline is still there."""
    store.save("main", run("one"))
    other = run("two")
    calls = {"copyfile": shutil, "sync_folder": baselines, "rename": Path}
    name = list(calls)[step]
    real = getattr(calls[name], name)
    seen = []

    def fail_second(*arguments, **how):
        seen.append(arguments)
        if len(seen) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments, **how)

    monkeypatch.setattr(calls[name], name, fail_second)
    with pytest.raises(RunFolderError, match="No space left"):
        store.save("main", other, replace=True)
    # The second sync comes after the new one has taken its place.
    assert RunFolder.open(store.find("main")).manifest.run_id == ("two" if name == "sync_folder" else "one")
    assert [p.name for p in store.folder.iterdir()] == ["main"]


def test_a_folder_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="cannot be written"):
        Baselines(tmp_path / "file").save("main", run())


def test_unknown_names_get_help(store, run):
    with pytest.raises(InputError, match=r"a saved baseline\. Save a baseline with --save-baseline"):
        store.find("main")
    store.save("main", run())
    with pytest.raises(InputError, match=r"expected main\. Did you mean main\?"):
        store.find("maim")
