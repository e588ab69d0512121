"""A store returns exactly the features put into it: hits, misses, damage of every kind, failing disks."""

from __future__ import annotations

import json
import os
import shutil
import struct
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.feature_store.conftest import scene
from unfuse.errors import FileAccessError, InputError
from unfuse.feature_store import FeatureStore, folder, ledger, store
from unfuse.features import Features


@pytest.fixture
def stored(tmp_path, make):
    """A store with scene 1, and its file."""
    opened = FeatureStore(tmp_path / "s")
    opened.put(make(1))
    return opened, opened.entry_path(make(1).provenance)


def test_what_goes_in_comes_out(tmp_path, make, get):
    opened = FeatureStore(tmp_path / "a" / "b")
    assert get(opened, 1) is None
    opened.put(make(1))
    opened.put(make(2, dtype=torch.bfloat16))
    for reader in (opened, FeatureStore(tmp_path / "a" / "b")):
        found = get(reader, 1)
        assert torch.equal(found.tensor, make(1).tensor)
        assert torch.equal(found.layers[0], make(1).layers[0])
        assert (found.provenance, dict(found.layout)) == (make(1).provenance, dict(make(1).layout))
        assert found.digest == make(1).digest
        assert reader.get("a" * 64, f"{2:064x}", "bfloat16").tensor.dtype == torch.bfloat16
        assert get(reader, 2) is None, "another dtype"
        assert get(reader, 1, "b" * 64) is None, "another model"
    assert vars_of(opened) == {"hits": 2, "misses": 3, "stored": 2}


def vars_of(opened):
    """Counts that are not 0."""
    counts = {name: getattr(opened.counts, name) for name in opened.counts.__slots__}
    return {name: count for name, count in counts.items() if count}


def test_other_software_is_a_miss(stored, get, monkeypatch):
    monkeypatch.setattr(store, "software", lambda: "torch 1.0")
    assert get(stored[0], 1) is None
    assert vars_of(stored[0]) == {"stored": 1, "misses": 1}, (
        "not damage: the entry stays for the software that wrote it"
    )
    assert [fault for _, fault in stored[0].check()] == [None]


def test_a_found_scene_is_the_callers_own(stored, get):
    get(stored[0], 1).tensor.zero_()
    assert get(stored[0], 1).tensor.eq(1).all()


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 1 << (at % 8)]) + data[at + 1 :]


def header_end(data):
    return 8 + struct.unpack("<Q", data[:8])[0]


SPOILED = {
    "empty": lambda data: b"",
    "truncated in its length": lambda data: data[:5],
    "truncated in its header": lambda data: data[:200],
    "truncated in its values": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "zeros": lambda data: bytes(len(data)),
    "bit of the length": lambda data: flipped(data, 0),
    "bit of the first value": lambda data: flipped(data, header_end(data)),
    "bit of the last value": lambda data: flipped(data, len(data) - 1),
    "another count of frames": lambda data: data.replace(b'\\"num_frames\\": 5', b'\\"num_frames\\": 4'),
    "another layout": lambda data: data.replace(b'\\"media_tokens\\": 7', b'\\"media_tokens\\": 8'),
    "another format": lambda data: data.replace(b"unfuse.features/3", b"unfuse.features/2"),
    "no text at all": lambda data: b"\xff" * 300,
    "deep": lambda data: struct.pack("<Q", 200_008) + b'{"__metadata__":' + b"[" * 199_992,
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_damaged_entry_is_removed_and_encoded_again(stored, make, get, name):
    opened, path = stored
    whole = path.read_bytes()
    spoiled = SPOILED[name](whole)
    assert spoiled != whole
    path.write_bytes(spoiled)
    assert [fault is None for _, fault in opened.check()] == [False]
    assert get(opened, 1) is None
    assert not path.exists()
    assert vars_of(opened) == {"stored": 1, "misses": 1, "damaged": 1}
    opened.put(make(1))
    assert get(opened, 1) is not None


@given(st.data())
def test_any_flipped_bit_is_found(tmp_path_factory, data):
    """In the header as in the values: an entry that differs from the written one is refused."""
    opened = FeatureStore(tmp_path_factory.getbasetemp() / "flipped")
    opened.put(scene(1))
    path = opened.entry_path(scene(1).provenance)
    whole = bytearray(path.read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole)
    assert opened.get("a" * 64, f"{1:064x}", "float32") is None
    assert opened.counts.damaged == 1


def test_a_foreign_safetensors_file(stored, get):
    save_file({"features": torch.ones(7, 4)}, stored[1])
    assert get(stored[0], 1) is None
    assert stored[0].counts.damaged == 1


@pytest.mark.parametrize(
    "other",
    [
        {"model_fingerprint": "b" * 64},
        {"media_sha256": "c" * 64},
    ],
)
def test_another_entry_under_this_name(stored, make, get, other):
    opened, path = stored
    whole = make(1)
    foreign = Features(whole.tensor, replace(whole.provenance, **other), whole.layers, whole.layout)
    opened.put(foreign)
    opened.entry_path(foreign.provenance).replace(path)
    ((_, fault),) = opened.check()
    assert "another model, scene, dtype or software" in fault
    assert get(opened, 1) is None
    assert opened.counts.damaged == 1


def test_an_entry_of_other_software_under_this_name(stored, make, get, monkeypatch):
    opened, path = stored
    with monkeypatch.context() as patch:
        patch.setattr(store, "software", lambda: "torch 1.0")
        opened.put(make(1))
        old = opened.entry_path(make(1).provenance)
    old.replace(path)
    assert get(opened, 1) is None
    assert opened.counts.damaged == 1


def make_folder(path):
    (path / "a").mkdir(parents=True)
    (path / "a" / "file").write_text("x")


def sparse(path):
    path.touch()
    os.truncate(path, 5 * 2**30)


NO_FILES = {
    "folder": make_folder,
    "pipe": os.mkfifo,
    "link to a file": lambda path: path.symlink_to(shutil.copy(path.parents[1] / "moved", path.parents[2])),
    "link to nothing": lambda path: path.symlink_to("/nowhere"),
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "five sparse GiB": sparse,
}


@pytest.mark.parametrize("name", NO_FILES)
def test_what_is_no_file_is_neither_followed_nor_waited_for(stored, make, get, name):
    opened, path = stored
    path.replace(path.parents[1] / "moved")
    NO_FILES[name](path)
    assert [fault for _, fault in opened.check()] == ["no readable file"]
    assert get(opened, 1) is None
    assert opened.counts.damaged == 1
    assert not os.path.lexists(path)
    NO_FILES[name](path)
    opened.put(make(1))
    assert path.is_file()
    assert not path.is_symlink()
    assert get(opened, 1) is not None


def test_the_target_of_a_link_stays(stored, get, tmp_path):
    opened, path = stored
    target = tmp_path / "precious"
    path.replace(target)
    path.symlink_to(target)
    assert get(opened, 1) is None
    assert target.exists()


def test_a_shard_that_leads_elsewhere_is_not_written_to(tmp_path, make):
    opened = FeatureStore(tmp_path / "s")
    (tmp_path / "elsewhere").mkdir()
    opened.entry_path(make(1).provenance).parent.symlink_to(tmp_path / "elsewhere")
    opened.put(make(1))
    assert opened.counts.unstored == 1
    assert not list((tmp_path / "elsewhere").iterdir())
    assert "is a link" in opened.trouble


@pytest.mark.parametrize("change", [{"media_sha256": ""}, {"media_sha256": "../x"}, {"model_fingerprint": "random"}])
def test_features_without_hashes_are_not_stored(tmp_path, make, change):
    """Pixels from nowhere all have the same empty hash: they would be taken for one another."""
    opened = FeatureStore(tmp_path / "s")
    whole = make(1)
    origin = replace(whole.provenance, **change)
    opened.put(Features(whole.tensor, origin))
    assert opened.get(origin.model_fingerprint, origin.media_sha256, origin.dtype) is None
    assert vars_of(opened) == {"unstored": 1, "misses": 1}
    assert "without the hashes" in opened.trouble


def failing(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("call", ["_write_new", "_replaced_bytes"])
def test_a_full_disk_breaks_nobody(stored, make, get, monkeypatch, call):
    opened, _ = stored
    with monkeypatch.context() as patch:
        patch.setattr(folder, call, failing(28))
        opened.put(make(2))
    assert vars_of(opened) == {"stored": 1, "unstored": 1}
    assert "No space left" in opened.trouble
    assert get(opened, 1) is not None
    assert not list((opened.path / "tmp").iterdir())
    opened.put(make(2))
    assert get(opened, 2) is not None


def test_a_lock_that_is_not_had_breaks_nobody(stored, make, get, monkeypatch):
    opened, path = stored
    monkeypatch.setattr(ledger, "_WAIT_S", 0.05)
    with ledger.locked(opened.path / "ledger"):
        opened.put(make(2))
        assert get(opened, 1) is not None, "reading needs no lock"
        path.write_bytes(b"")
        assert get(opened, 1) is None
    assert (opened.counts.unstored, opened.counts.damaged) == (1, 1)
    assert "another process holds" in opened.trouble


def readonly(path, *, on):
    for each in (path, *path.rglob("*")):
        each.chmod((0o555 if each.is_dir() else 0o444) if on else (0o755 if each.is_dir() else 0o644))


def test_a_store_that_may_only_be_read(stored, make, get, monkeypatch):
    """Root may write anywhere, so the test raises the system's errors itself."""
    opened, path = stored
    readonly(opened.path, on=True)
    for name in ("_write_new", "locked"):
        monkeypatch.setattr(folder, name, failing(30))
    monkeypatch.setattr(os, "utime", failing(30))
    try:
        again = FeatureStore(opened.path)
        assert get(again, 1) is not None
        again.put(make(2))
        assert "Read-only file system" in again.trouble
        path.chmod(0o644)
        path.write_bytes(b"damaged")
        assert get(again, 1) is None
        assert vars_of(again) == {"hits": 1, "misses": 1, "damaged": 1, "unstored": 1}
    finally:
        readonly(opened.path, on=False)


def test_an_empty_folder_that_may_only_be_read(tmp_path, get, monkeypatch):
    monkeypatch.setattr(folder, "_write_new", failing(30))
    assert get(FeatureStore(tmp_path), 1) is None


@pytest.mark.parametrize("make_it", [True, False])
def test_a_file_is_no_store(tmp_path, make_it):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(FileAccessError) as refused:
            FeatureStore(path, make=make_it)
        assert "\n" not in str(refused.value)


def test_a_folder_with_something_else_in_it_is_no_store(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="something else"):
        FeatureStore(tmp_path)
    (tmp_path / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n# Somebody else's cache\n")
    with pytest.raises(InputError, match="something else"):
        FeatureStore(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["CACHEDIR.TAG", "thesis.tex"]


def test_nothing_is_made_where_something_must_be(tmp_path):
    with pytest.raises(FileAccessError, match="No such file"):
        FeatureStore(tmp_path / "none", make=False)
    with pytest.raises(InputError, match="an empty folder"):
        FeatureStore(tmp_path, make=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bound", [0, -5])
def test_a_bound_that_is_none(tmp_path, bound):
    with pytest.raises(InputError, match="at least 1"):
        FeatureStore(tmp_path, bound)


def test_a_folder_that_is_removed_under_it(stored, make, get):
    opened, _ = stored
    shutil.rmtree(opened.path)
    assert get(opened, 1) is None
    opened.put(make(1))
    assert get(opened, 1) is not None
    assert get(FeatureStore(opened.path, make=False), 1) is not None, "it is a store again"


def test_info_and_clear(stored, make):
    opened, path = stored
    opened.put(make(2))
    (opened.path / "tmp" / "77.dead").write_bytes(b"12345")
    (opened.path / "notes.txt").write_text("somebody's")
    (path.parent / "notes.txt").write_text("somebody's")
    found = opened.info()
    assert (found.entries, found.temporary_bytes) == (2, 5)
    assert found.entry_bytes == sum(path.stat().st_size for path in opened.path.rglob("*.safetensors"))
    assert found.least_recent_use <= found.most_recent_use
    assert opened.clear() == found
    left = opened.info()
    assert (left.entries, left.entry_bytes, left.temporary_bytes, left.least_recent_use) == (0, 0, 0, None)
    assert (opened.path / "notes.txt").exists()
    assert (path.parent / "notes.txt").exists()
    opened.put(make(3))
    assert (opened.path / "ledger").read_text() == str(opened.info().entry_bytes)


def test_the_tag_says_that_it_is_a_cache(stored):
    text = (stored[0].path / "CACHEDIR.TAG").read_text()
    assert text.startswith("Signature: 8a477f597d28d172789f06886806bc55\n")


def test_entries_are_plain_features_files(stored, make):
    """Anybody's ``Features.load`` reads one."""
    assert Features.load(stored[1]).digest == make(1).digest
    data = stored[1].read_bytes()
    assert "made_by" in json.loads(data[8 : header_end(data)])["__metadata__"]
