"""The store in a run: a second pass with other questions encodes nothing, and answers as one that encodes."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from tests.started import PATIENCE_S
from unfuse.batch_inference.job import RunJob, RunSettings, Work, answer_dataset
from unfuse.batch_inference.store import CacheWriter, StoreConfig, StoreLookup
from unfuse.errors import InputError
from unfuse.feature_store import FeatureStore
from unfuse.samples.demo import demo_dataset
from unfuse.testing import FakeTime

SETTINGS = RunSettings(max_new_tokens=8, workers=0)


@pytest.fixture(scope="module")
def filled(demo_model, tmp_path_factory):
    """A store after a run of other questions."""
    folder = tmp_path_factory.mktemp("store") / "scenes"
    work = Work(demo_dataset(max_samples=4))
    run = answer_dataset(
        RunJob(model=demo_model, work=work, settings=replace(SETTINGS, store=folder), output=folder.parent / "first")
    )
    assert (run.summary().scenes_found, run.summary().scenes) == (0, 4)
    assert FeatureStore(folder).info().entries == 4
    return folder


def answered(demo_model, work, store, output, monkeypatch):
    monkeypatch.setattr(demo_model.adapter, "encode_batch", None)  # a call fails
    run = answer_dataset(RunJob(model=demo_model, work=work, settings=replace(SETTINGS, store=store), output=output))
    assert all(each.features_kept for each in run.answers())
    return run


def test_a_second_pass_encodes_nothing(demo_model, demo_work, expected, filled, tmp_path, monkeypatch):
    run = answered(demo_model, demo_work, FeatureStore(filled), tmp_path / "run", monkeypatch)
    assert {each.sample_id: each.token_ids for each in run.answers()} == {
        n: own.token_ids for n, own in expected.items()
    }
    summary = run.summary()
    assert (summary.ok, summary.scenes_found, summary.times.encode_s) == (12, 4, 0.0)
    assert "Store: 4 of 4 scenes found, not encoded again." in summary.lines()


def test_a_damaged_scene_is_encoded_again(demo_model, demo_work, expected, filled, tmp_path):
    entry = next(path for path in filled.rglob("*.safetensors"))
    data = bytearray(entry.read_bytes())
    data[-1] ^= 1
    entry.write_bytes(data)
    run = answer_dataset(
        RunJob(model=demo_model, work=demo_work, settings=replace(SETTINGS, store=filled), output=tmp_path / "run")
    )
    assert run.summary().scenes_found == 3
    assert {each.sample_id: each.token_ids for each in run.answers()} == {
        n: own.token_ids for n, own in expected.items()
    }
    assert FeatureStore(filled).info().entries == 4


def test_a_folder_that_is_no_store(demo_model, demo_work, tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a").touch()
    with pytest.raises(InputError):
        answer_dataset(
            RunJob(
                model=demo_model,
                work=demo_work,
                settings=replace(SETTINGS, store=tmp_path / "files"),
                output=tmp_path / "run",
            )
        )
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_a_warning(demo_model, tmp_path, monkeypatch):
    def full(self, key, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("unfuse.feature_store.folder.StoreFolder.write", full)
    work = Work(demo_dataset(max_samples=1))
    run = answer_dataset(
        RunJob(model=demo_model, work=work, settings=replace(SETTINGS, store=tmp_path / "s"), output=tmp_path / "run")
    )
    assert run.summary().ok == 1
    assert any("Warning: not every scene is stored" in line and "No space" in line for line in run.summary().lines())


def test_a_store_that_holds_the_run_back_is_the_bottleneck(demo_model, tmp_path, monkeypatch):
    put, clock = FeatureStore.put, FakeTime()

    def slow(self, features):
        clock.sleep(1000)  # more than the whole run takes
        put(self, features)

    monkeypatch.setattr(FeatureStore, "put", slow)
    monkeypatch.setattr("unfuse.batch_inference.store.time", clock)
    settings = replace(SETTINGS, store=tmp_path / "store", max_new_tokens=1)
    run = answer_dataset(
        RunJob(model=demo_model, work=Work(demo_dataset(max_samples=2)), settings=settings, output=tmp_path / "run")
    )
    summary = run.summary()
    assert summary.times.store_s == 2000
    assert summary.bottleneck.where == "store"
    (line,) = (line for line in summary.lines() if line.startswith("Bottleneck"))
    assert line.startswith("Bottleneck: keeping scenes (store busy ")


def test_encoding_waits_only_for_a_store_that_is_far_behind(demo_model, demo_sample):
    gate, written = threading.Event(), []

    class Slow:
        def put(self, features):
            gate.wait()
            written.append(features)

    writer = CacheWriter(Slow())
    features = demo_model.encode(demo_sample)
    for _ in range(10):
        writer(features)
    assert written == []
    gate.set()
    writer.close()
    assert len(written) == 10


def test_features_that_cannot_be_written_block_nothing(demo_model, demo_sample):
    class Broken:
        trouble = None

        def put(self, features):
            raise MemoryError("no room for a copy")

    writer = CacheWriter(Broken())
    features = demo_model.encode(demo_sample)

    def encode():
        for _ in range(40):
            writer(features)
        writer.close()

    encoding = threading.Thread(target=encode, daemon=True)
    encoding.start()
    encoding.join(PATIENCE_S)
    assert not encoding.is_alive()
    assert writer.trouble == "MemoryError: no room for a copy"


def test_a_worker_looks_up_the_model_s_features(demo_model, demo_sample, filled):
    store = StoreConfig(path=filled, max_bytes=1 << 30)
    lookup = StoreLookup(store=store, model_fingerprint=demo_model.fingerprint, dtype="float32")
    media = demo_model.media_sha256(demo_sample)
    assert lookup(media).provenance.media_sha256 == media
    assert replace(lookup, dtype="bfloat16")(media) is None
    assert replace(lookup, model_fingerprint="0" * 64)(media) is None
    assert store.open() is replace(store).open()
