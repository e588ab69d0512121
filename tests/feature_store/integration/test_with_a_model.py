"""Get or encode: the second pass neither decodes, nor preprocesses, nor encodes, and answers the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unfuse.adapters import media
from unfuse.errors import MediaError
from unfuse.events import TimeWindow
from unfuse.feature_store import FeatureStore
from unfuse.loading import load
from unfuse.samples import Sample
from unfuse.samples.demo import demo_sample as demo

QUESTION = "What moves?"


def test_a_hit_costs_hash_and_entry_only(demo_model, demo_sample, tmp_path, monkeypatch):
    store = FeatureStore(tmp_path)
    first, hit = store.features(demo_model, demo_sample)
    assert not hit
    monkeypatch.setattr(media, "read_events", lambda *_, **__: pytest.fail("the recording was read"))
    monkeypatch.setattr(type(demo_model.adapter), "preprocess", lambda *_: pytest.fail("pixels were made"))
    monkeypatch.setattr(type(demo_model.adapter), "encode", lambda *_: pytest.fail("it was encoded"))
    again, hit = FeatureStore(tmp_path).features(demo_model, demo_sample)
    assert hit
    assert again.digest == first.digest
    answers = [demo_model.generate(QUESTION, f, max_new_tokens=12, reuse=False).token_ids for f in (first, again)]
    assert answers[0] == answers[1]


def test_what_was_prepared_and_what_was_not_share_an_entry(demo_model, demo_sample, tmp_path):
    store = FeatureStore(tmp_path)
    prepared = demo_model.preprocess(demo_model.load(demo_sample))
    assert [store.features(demo_model, each)[1] for each in (prepared, demo_sample, prepared)] == [False, True, True]
    found = store.find(demo_model, demo_model.media_sha256(demo_sample))
    assert found.provenance == demo_model.encode(prepared).provenance


def test_other_scenes_windows_and_frames_are_other_entries(demo_model, demo_sample, tmp_path):
    store = FeatureStore(tmp_path)
    loaded = demo_model.load(demo_sample)
    others = [
        demo("demo:1"),
        replace(demo_sample, window=TimeWindow(start_us=0, stop_us=20_000)),
        Sample.from_frames(list(loaded.frames)),
        Sample.from_frames(list(loaded.frames)[:3]),
    ]
    for sample in (demo_sample, *others):
        assert not store.features(demo_model, sample)[1]
    assert store.info().entries == 1 + len(others)
    for sample in (demo_sample, *others):
        stored, hit = store.features(demo_model, sample)
        assert hit
        assert stored.digest == demo_model.encode(sample).digest


def test_models_and_dtypes_share_a_folder(demo_model, demo_sample, tmp_path):
    store = FeatureStore(tmp_path)
    with (
        load("demo", device="cpu", dtype="bfloat16") as half,
        load("random:llava-tiny", device="cpu") as llava,
        load("random:video-llava-tiny", device="cpu") as film,
    ):
        models = (demo_model, half, llava, film)
        encoded = [store.features(model, demo_sample) for model in models]
        assert [hit for _, hit in encoded] == [False] * 4
        for model, (fresh, _) in zip(models, encoded, strict=True):
            stored, hit = store.features(model, demo_sample)
            assert hit
            assert torch.equal(stored.tensor, fresh.tensor)
            assert dict(stored.layout) == dict(fresh.layout)
            answers = [model.generate(QUESTION, f, max_new_tokens=4, reuse=False).token_ids for f in (fresh, stored)]
            assert answers[0] == answers[1]


def test_a_changed_recording_is_another_scene(demo_model, tmp_path):
    recording = tmp_path / "a.npy"
    store = FeatureStore(tmp_path / "store")
    for number in (0, 1):
        recording.write_bytes(demo(f"demo:{number}").event_data.read_bytes())
        stored, hit = store.features(demo_model, Sample.from_events(recording))
        assert not hit
        assert stored.digest == demo_model.encode(demo(f"demo:{number}")).digest


def test_text_alone_is_encoded_and_not_stored(tmp_path):
    store = FeatureStore(tmp_path)
    with load("random:llava-tiny", device="cpu") as model:
        for _ in range(2):
            _, hit = store.features(model, Sample(sample_id="a", question="Say something."))
            assert not hit
    assert store.counts.unstored == 2


def test_errors_are_those_of_loading(demo_model, tmp_path):
    with pytest.raises(MediaError, match="no events"):
        FeatureStore(tmp_path).features(demo_model, Sample(sample_id="a"))
