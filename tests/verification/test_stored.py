"""Check ``store-hit``, and the stores that it catches."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from safetensors.torch import load as tensors

from unfuse.errors import FeaturesError
from unfuse.feature_store import FeatureStore
from unfuse.features import Features, unpack
from unfuse.loading import load
from unfuse.stages import Provenance
from unfuse.verification.checks import prepare_subject
from unfuse.verification.stored import store_hit


@pytest.fixture(scope="module")
def checked(demo_model, demo_sample):
    return prepare_subject(demo_model, demo_sample, 4)


class Forgets(FeatureStore):
    """Stores nothing."""

    def put(self, features):
        return None


class Stale(FeatureStore):
    """Keyed by the model alone: any scene is answered with the first."""

    def _one(self, provenance):
        return replace(provenance, media_sha256="1" * 64)

    def get(self, model_fingerprint, media_sha256, dtype):
        return super().get(model_fingerprint, "1" * 64, dtype)

    def put(self, features):
        super().put(Features(features.tensor, self._one(features.provenance), features.layers, features.layout))

    def entry_path(self, origin):
        return super().entry_path(self._one(origin))


class ForAnyModel(Stale):
    """Keyed by the scene alone."""

    def _one(self, provenance):
        return replace(provenance, model_fingerprint="1" * 64)

    def get(self, model_fingerprint, media_sha256, dtype):
        found = FeatureStore.get(self, "1" * 64, media_sha256, dtype)
        if found is None:
            return None
        origin = replace(found.provenance, model_fingerprint=model_fingerprint)
        return Features(found.tensor, origin, found.layers, found.layout)


class TrustsNames(FeatureStore):
    """Takes an entry by its name, without a check of its content."""

    def _checked(self, entry, key):
        texts = json.loads(entry.data[8 : 8 + int.from_bytes(entry.data[:8], "little")])["__metadata__"]
        fields = json.loads(texts["provenance"])
        return Features(tensors(entry.data)["features"], Provenance(**{**fields, "shape": tuple(fields["shape"])}))


class ChecksNoName(FeatureStore):
    """Checks the checksum, but not the name."""

    def _checked(self, entry, key):
        try:
            return unpack(entry.data, key)[0]
        except FeaturesError:
            self._folder.remove(key, entry.identity)
            return None


class Rounds(FeatureStore):
    """Gives back fewer bits than it took."""

    def get(self, *what):
        found = super().get(*what)
        return found and Features(found.tensor.bfloat16().to(found.tensor.dtype), found.provenance)


class EncodesAnyway(FeatureStore):
    """Reports features as found, but encodes them."""

    def features(self, model, source):
        features, hit = super().features(model, source)
        return (model.encode(source) if hit else features), hit


class KeepsDamage(FeatureStore):
    """Refuses a damaged entry for ever: it is neither removed nor replaced."""

    def put(self, features):
        if not self.entry_path(features.provenance).exists():
            super().put(features)

    def _checked(self, entry, key):
        self._folder.remove = lambda *_: None
        return super()._checked(entry, key)


def test_a_sound_store_passes(checked):
    result = store_hit(checked)
    assert (result.name, result.status) == ("store-hit", "pass"), result


@pytest.mark.parametrize("name", ["random:llava-tiny", "random:video-llava-tiny"])
def test_it_passes_on_other_families(name, demo_sample):
    with load(name, device="cpu") as model:
        assert store_hit(prepare_subject(model, demo_sample, 4)).status == "pass"


def test_a_sample_without_media_is_skipped(checked):
    assert store_hit(replace(checked, prepared=replace(checked.prepared, media_tokens=0))).status == "skip"


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (Forgets, ["second pass a miss", "no file of the entry"]),
        (Stale, ["another scene was answered"]),
        (ForAnyModel, ["another model was answered"]),
        (TrustsNames, ["a damaged entry was ACCEPTED", "an entry of another model was ACCEPTED"]),
        (ChecksNoName, ["an entry of another model was ACCEPTED"]),
        (Rounds, ["another digest", "other logits"]),
        (EncodesAnyway, ["ENCODED (tower 1"]),
        (KeepsDamage, ["after a damaged entry nothing is cached"]),
    ],
)
def test_a_broken_store_is_caught(checked, broken, words):
    result = store_hit(checked, broken)
    assert (result.name, result.status) == ("store-hit", "fail"), result
    assert all(word in result.observed for word in words), result.observed


def test_a_hash_that_is_not_the_one_of_load_is_caught(checked, monkeypatch):
    monkeypatch.setattr(checked.model.adapter, "media_sha256", lambda _: "2" * 64, raising=False)
    assert "ANOTHER than the one of load" in store_hit(checked).observed
