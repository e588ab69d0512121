"""The split points of EventGPT, and the values that may pass them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessorPil

from unfuse.errors import FeaturesError, MediaError, PromptError
from unfuse.events import event_frames, read_events, write_eventgpt_npy
from unfuse.features import Features
from unfuse.loading import load
from unfuse.measure.clock import StageClock
from unfuse.measure.timers import HostTimer
from unfuse.samples import Sample
from unfuse.stages import Sampling
from unfuse.testing import synthetic_stream


def test_load_takes_images_before_events(demo_model, demo_sample, tmp_path):
    from PIL import Image

    frames = event_frames(read_events(demo_sample.event_data))
    paths = []
    for index, frame in enumerate(frames):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(frame).save(paths[-1])
    both = Sample(sample_id="both", event_data=demo_sample.event_data, event_image=tuple(paths))
    loaded = demo_model.load(both)
    assert loaded.media == "event_image"
    assert loaded.num_events is None
    from_events = demo_model.load(demo_sample)
    assert from_events.media == "event_data"
    assert all(np.array_equal(a, b) for a, b in zip(loaded.frames, from_events.frames, strict=True))
    assert loaded.media_sha256 != from_events.media_sha256
    in_memory = demo_model.load(Sample.from_frames(frames))
    assert torch.equal(demo_model.encode(both).tensor, demo_model.encode(Sample.from_frames(frames)).tensor)
    assert in_memory.media == "frames"


def test_every_frame_counts(demo_model, demo_sample):
    """The published benchmark encoded the first frame only; a change to the last one must show."""
    prepared = demo_model.preprocess(demo_model.load(demo_sample))
    changed = prepared.pixel_values.clone()
    changed[-1] = 0
    features = demo_model.encode(prepared)
    other = demo_model.encode(replace(prepared, pixel_values=changed))
    assert features.tensor.shape == (5 + 65, 256)
    assert not torch.allclose(features.tensor, other.tensor)


def test_pixels_are_pillows(demo_model, demo_sample):
    loaded = demo_model.load(demo_sample)
    prepared = demo_model.preprocess(loaded)
    reference = CLIPImageProcessorPil(size={"shortest_edge": 112}, crop_size={"height": 112, "width": 112})
    wanted = reference(list(loaded.frames), return_tensors="pt")["pixel_values"]
    assert torch.equal(prepared.pixel_values, wanted)


def test_spans_lie_inside_their_stages(demo_model, demo_sample):
    clock = StageClock(HostTimer())
    with clock.stage("load"):
        loaded = demo_model.load(demo_sample)
    with clock.stage("preprocess"):
        prepared = demo_model.preprocess(loaded)
    with clock.stage("encode"):
        demo_model.encode(prepared)
    for stage, names in {
        "load": {"read", "rasterise"},
        "preprocess": {"pixels", "tokenize", "upload"},
        "encode": {"tower", "projector", "pooling"},
    }.items():
        spans = {n.removeprefix(f"{stage}."): t.host_ms for n, t in clock.spans.items() if n.startswith(stage)}
        assert set(spans) == names
        assert 0 < sum(spans.values()) <= clock.stages[stage].host_ms


def test_long_recordings_are_allowed_and_noted(demo_model, tmp_path):
    write_eventgpt_npy(tmp_path / "long.npy", synthetic_stream(duration_us=2_000_000))
    loaded = demo_model.load(Sample.from_events(tmp_path / "long.npy"))
    assert "refuses 100 ms" in loaded.notes[0]


def test_question_too_long(demo_model, demo_sample):
    loaded = demo_model.load(demo_sample)
    with pytest.raises(PromptError, match="at most 2048"):
        demo_model.preprocess(loaded, "why? " * 3000)


def test_sample_without_events(demo_model, tmp_path):
    with pytest.raises(MediaError, match="event_image or event_data"):
        demo_model.load(Sample.from_video(tmp_path / "v.mp4"))


def test_features_with_another_number_of_frames(demo_model, demo_sample):
    prepared = demo_model.preprocess(demo_model.load(demo_sample))
    one = demo_model.encode(replace(prepared, pixel_values=prepared.pixel_values[:1]))
    with pytest.raises(FeaturesError, match="66 positions.*70"):
        demo_model.prefill(prepared, one)


def test_features_of_another_model(demo_model, demo_sample):
    features = demo_model.encode(demo_sample)
    foreign = Features(features.tensor, replace(features.provenance, model_fingerprint="0" * 64))
    with pytest.raises(FeaturesError, match="another model"):
        demo_model.generate("What?", foreign, max_new_tokens=1)


def test_features_survive_the_disk(demo_model, demo_sample, tmp_path):
    features = demo_model.encode(demo_sample)
    features.save(tmp_path / "scene.safetensors")
    again = Features.load(tmp_path / "scene.safetensors")
    wanted = demo_model.generate("What?", features, max_new_tokens=6)
    assert demo_model.generate("What?", again, max_new_tokens=6).token_ids == wanted.token_ids


def test_batches_write_what_single_prompts_write(golden_dir, recordings_dir):
    """Prompts of other lengths about other scenes, padded on the left: staged, fused, and each by itself."""
    questions = ["What moves?", "What moves, and where does it move to, and how fast?", "Is anything still?"]
    scenes = [Sample.from_events(path) for path in sorted(recordings_dir.glob("*.npy"))[-3:]]
    with load(str(golden_dir / "checkpoints" / "EventGPT-tiny"), device="cpu", dtype="float32") as model:
        prepared = [model.preprocess(model.load(s), q) for s, q in zip(scenes, questions, strict=True)]
        features = [model.encode(each) for each in prepared]
        alone = [model.generate(q, f, max_new_tokens=12, reuse=False) for q, f in zip(questions, features, strict=True)]
        assert model.generate_batch(questions, features, max_new_tokens=12) == alone
        whole = model.adapter.fused_generate(prepared, max_new_tokens=12, sampling=Sampling())
    assert [answer.token_ids for answer in whole] == [answer.token_ids for answer in alone]
    assert len({answer.token_ids for answer in alone}) == 3, "three scenes, three answers"


def test_sampled_rows_of_a_batch_are_drawn_as_alone(demo_model, demo_sample):
    features = demo_model.encode(demo_sample)
    sampling = Sampling(temperature=1.5, top_p=0.9, seed=3)
    alone = demo_model.generate("What moves?", features, max_new_tokens=8, sampling=sampling, reuse=False)
    together = demo_model.generate_batch(["What moves?"] * 2, [features] * 2, max_new_tokens=8, sampling=sampling)
    assert together == [alone, alone]


def test_a_batch_needs_one_scene_a_question(demo_model, demo_sample):
    features = demo_model.encode(demo_sample)
    with pytest.raises(PromptError, match="2 questions, expected 1"):
        demo_model.generate_batch(["a", "b"], [features])
    with pytest.raises(PromptError):
        demo_model.generate_batch([], [])
