"""Features as a value: saved, loaded, compared, refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unfuse.errors import FeaturesError, FileAccessError
from unfuse.features import Features, require_fit
from unfuse.stages import Provenance


@pytest.fixture
def features():
    origin = Provenance(
        model_fingerprint="a" * 64,
        family="eventgpt",
        media_sha256="m",
        num_frames=5,
        dtype="float32",
        shape=(7, 4),
    )
    return Features(torch.randn(7, 4), origin)


def test_round_trip(features, tmp_path):
    features.save(tmp_path / "scene.safetensors")
    again = Features.load(tmp_path / "scene.safetensors")
    assert torch.equal(again.tensor, features.tensor)
    assert again.provenance == features.provenance
    assert again.digest == features.digest
    assert [p.name for p in tmp_path.iterdir()] == ["scene.safetensors"]


def test_digest_sees_in_place_changes(features):
    before = features.digest
    features.tensor.add_(1)
    assert features.digest != before


def test_flipped_bit_is_found(features, tmp_path):
    path = tmp_path / "scene.safetensors"
    features.save(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(FeaturesError, match="digest"):
        Features.load(path)


@pytest.mark.parametrize("size", [0, 5, 100, -10])
def test_truncated(features, tmp_path, size):
    path = tmp_path / "scene.safetensors"
    features.save(path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(FeaturesError):
        Features.load(path)


def test_missing_and_unwritable(features, tmp_path):
    with pytest.raises(FileAccessError, match="no such file"):
        Features.load(tmp_path / "none")
    with pytest.raises(FileAccessError):
        features.save(tmp_path / "no" / "such" / "folder.safetensors")


def test_tensor_must_match_its_provenance(features):
    with pytest.raises(FeaturesError, match=r"\[3, 4\].*\[7, 4\]"):
        Features(features.tensor[:3], features.provenance)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"family": "llava"}, ["family", "eventgpt", "llava"]),
        ({"dtype": "bfloat16"}, ["dtype", "float32", "bfloat16"]),
        ({"shape": (9, 8)}, ["width", "4", "8"]),
        ({"model_fingerprint": "b" * 64}, ["model", "a" * 16, "b" * 16]),
    ],
)
def test_misfits_name_both_sides(features, change, words):
    with pytest.raises(FeaturesError) as error:
        require_fit(features, replace(features.provenance, **change))
    assert all(word in str(error.value) for word in words)


def test_other_scene_of_the_same_model_fits(features):
    require_fit(features, replace(features.provenance, media_sha256="other", num_frames=3, shape=(5, 4)))


def test_a_digest_that_is_vouched_for_lasts_until_a_value_changes():
    tensor = torch.ones(2, 3)
    source = Provenance(
        model_fingerprint="m", family="f", media_sha256="s", num_frames=1, dtype="float32", shape=(2, 3)
    )
    features = Features(tensor, source)
    named = features.known_as("the scene")
    assert named.digest == "the scene"
    assert named.tensor is tensor
    assert features.digest != "the scene"
    tensor[0, 0] = 2
    assert named.digest == features.digest
    assert len(named.digest) == 64
