"""Stages 1 and 2 without the network give the results of the model's own processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.adapters import families, test_processors
from unfuse.adapters.base import SceneInfo
from unfuse.errors import CheckpointError, FileAccessError, MediaError
from unfuse.loading import load, open_preprocessor
from unfuse.samples import Sample
from unfuse.samples.demo import demo_sample


def same(one, other):
    assert torch.equal(one.input_ids.cpu(), other.input_ids.cpu())
    assert torch.equal(one.pixel_values, other.pixel_values)
    assert one.pixel_values.dtype == other.pixel_values.dtype
    assert one.inputs.keys() == other.inputs.keys()
    assert all(torch.equal(tensor, other.inputs[name]) for name, tensor in one.inputs.items())
    for name in ("media_sha256", "question", "num_frames", "text_tokens", "media_tokens", "token_ids"):
        assert getattr(one, name) == getattr(other, name), name
    assert one.token_ids == tuple(one.input_ids[0].tolist())


@pytest.fixture(params=["demo", "random:llava-tiny", "random:video-llava-tiny", "llava", "video_llava"])
def name(request, tmp_path):
    if request.param in families.FAMILIES:
        return str(test_processors.folder(tmp_path / "model", request.param, "CLIPImageProcessor"))
    return request.param


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_preprocessor_reads_no_weights(name, dtype):
    preprocessor = open_preprocessor(name, dtype)
    sample = demo_sample("demo:1")
    with load(name, device="cpu", dtype=dtype) as model:
        loaded = preprocessor.load(sample)
        assert preprocessor.media_sha256(sample) == loaded.media_sha256 == model.load(sample).media_sha256
        assert preprocessor.family == model.family
        prepared = preprocessor.preprocess(loaded, "What moves?")
        own = model.preprocess(model.load(sample), "What moves?")
        same(prepared, own)
        assert prepared.frame_sizes == own.frame_sizes
        assert prepared.pixel_values.dtype == model.dtype
        features = model.encode(model.adapter.upload(prepared))
        assert torch.equal(features.tensor, model.encode(own).tensor)
        further = preprocessor.tokenize("Is it raining?", SceneInfo.of(prepared))
        assert not further.pixel_values.numel()
        same(model.adapter.rebuild_inputs(further, features), model.adapter.tokenize("Is it raining?", features))
        same(further, preprocessor.tokenize("Is it raining?", preprocessor.scene_info(features)))
        assert preprocessor.decode_text([5, 6, 7]) == model.answer((5, 6, 7), 1).text


def test_a_preprocessor_opens_without_weights(tmp_path):
    checkpoint = test_processors.folder(tmp_path / "model", "llava", "CLIPImageProcessor")
    (checkpoint / "model.safetensors").unlink()
    assert open_preprocessor(str(checkpoint), "float32").preprocess(demo_loaded(checkpoint)).media_tokens == 4
    (checkpoint / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_preprocessor(str(checkpoint), "float32")


def demo_loaded(checkpoint):
    return open_preprocessor(str(checkpoint), "float32").load(demo_sample("demo:0"))


def test_media_are_named_without_being_decoded(tmp_path):
    """The hash is of the files' bytes, so it exists even if the files cannot be decoded."""
    event, video = open_preprocessor("demo", "float32"), open_preprocessor("random:video-llava-tiny", "float32")
    (tmp_path / "clip").mkdir()
    for i in range(9):
        Image.fromarray(np.full((20, 30, 3), i, np.uint8)).save(tmp_path / "clip" / f"{i}.png")
    for sample in (Sample.from_video(tmp_path / "clip"), Sample.from_image(next((tmp_path / "clip").iterdir()))):
        assert video.media_sha256(sample) == video.load(sample).media_sha256
    assert video.media_sha256(Sample(sample_id="text")) == ""
    damaged = tmp_path / "damaged.npy"
    damaged.write_bytes(b"no events")
    first = event.media_sha256(Sample.from_events(damaged))
    damaged.write_bytes(b"other bytes, and still no events")
    assert event.media_sha256(Sample.from_events(damaged)) != first
    with pytest.raises(FileAccessError, match=r"gone\.npy"):
        event.media_sha256(Sample.from_events(tmp_path / "gone.npy"))
    with pytest.raises(MediaError, match="no events"):
        event.media_sha256(Sample(sample_id="text"))
