"""Every check gets a broken model or clock, and must catch it by name."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch

from unfuse.adapters.eventgpt import EventGPTAdapter
from unfuse.engines.eager import EagerEngine
from unfuse.features import Features
from unfuse.staged_model import StagedModel
from unfuse.verification import checks, verify_model
from unfuse.verification.golden import golden, read_golden
from unfuse.verification.same_output import same_output

TOKENS = 24


def staged(demo_model, adapter_class, engine=None):
    source = demo_model.adapter
    adapter = adapter_class(source.model, source.preprocessor, source.fingerprint)
    return StagedModel("broken", adapter, engine or EagerEngine(adapter.language))


class ReEncodes(EventGPTAdapter):
    """Takes the features and encodes the pixels again."""

    def prompt(self, prepared, features, *, digest):
        if prepared.pixel_values.numel():
            features = self.encode(prepared)
        return super().prompt(prepared, features, digest=digest)


class ReEncodesKept(EventGPTAdapter):
    """Keeps the pixels of the last scene and encodes those."""

    cached = None

    def encode(self, prepared):
        self.cached = prepared
        return super().encode(prepared)

    def prompt(self, prepared, features, *, digest):
        return super().prompt(prepared, super().encode(self.cached), digest=digest)


class ReEncodesAside(ReEncodesKept):
    """The same, through a copy of the tower that no module list knows."""

    copied = None

    def prompt(self, prepared, features, *, digest):
        self.copied = self.copied or (copy.deepcopy(self.model.model.visual_tower),)
        self.copied[0](self.cached.pixel_values)
        return EventGPTAdapter.prompt(self, prepared, features, digest=digest)


class EncodesTwice(EventGPTAdapter):
    def encode(self, prepared):
        super().encode(prepared)
        return super().encode(prepared)


class Ignores(EventGPTAdapter):
    """Puts zeros in place of the features."""

    def prompt(self, prepared, features, *, digest):
        blank = Features(torch.zeros_like(features.tensor), features.provenance)
        return super().prompt(prepared, blank, digest=digest)


class Mutates(EventGPTAdapter):
    """Scales the features in place."""

    def prompt(self, prepared, features, *, digest):
        prompt = super().prompt(prepared, features, digest=digest)
        features.tensor.data.mul_(1.001)
        return prompt


class FirstFrameOnly(EventGPTAdapter):
    """The published benchmark's Stage 3: one frame stands for all."""

    def encode(self, prepared):
        first = prepared.pixel_values[:1].expand_as(prepared.pixel_values)
        return super().encode(replace(prepared, pixel_values=first))


class StaleDigest(EventGPTAdapter):
    """A prefix cache keyed by text alone."""

    def prompt(self, prepared, features, *, digest):
        prompt = super().prompt(prepared, features, digest=digest)
        return replace(prompt, features_digest="always the same")


class BreaksFused(EventGPTAdapter):
    """Once the stages ran, the fused call answers with something else."""

    ran = False

    def encode(self, prepared):
        self.ran = True
        return super().encode(prepared)

    def fused_generate(self, prepared, **settings):
        changed = [replace(p, pixel_values=p.pixel_values * (0 if self.ran else 1)) for p in prepared]
        return super().fused_generate(changed, **settings)


CHECKS = {
    "encode-once": checks.encode_once,
    "same-output": same_output,
    "features-used": checks.features_used,
    "backward-compatible": checks.backward_compatible,
}


@pytest.mark.parametrize("name", CHECKS)
def test_sound_model_passes(demo_model, demo_sample, name):
    result = CHECKS[name](checks.prepare_subject(demo_model, demo_sample, TOKENS))
    assert (result.name, result.status) == (name, "pass"), result


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("encode-once", ReEncodes),
        ("encode-once", ReEncodesKept),
        ("encode-once", ReEncodesAside),
        ("encode-once", EncodesTwice),
        ("same-output", Ignores),
        ("same-output", FirstFrameOnly),
        ("features-used", Ignores),
        ("features-used", Mutates),
        ("features-used", StaleDigest),
        ("backward-compatible", BreaksFused),
    ],
)
def test_broken_model_is_caught(demo_model, demo_sample, name, broken):
    result = CHECKS[name](checks.prepare_subject(staged(demo_model, broken), demo_sample, TOKENS))
    assert (result.name, result.status) == (name, "fail"), result


def test_same_output_names_the_token_that_differs(demo_model, demo_sample):
    """In float32 even a difference of one token fails, and the row has position, both logits and margin."""
    subject = checks.prepare_subject(staged(demo_model, Ignores), demo_sample, 30)
    observed = same_output(subject).observed
    assert "difference at token" in observed
    assert "margin" in observed
    assert observed.count("(logit") >= 2


def test_golden_is_caught(golden_dir, demo_model, tmp_path):
    from unfuse.loading import load

    model = load(str(golden_dir / "checkpoints" / "EventGPT-tiny"), device="cpu")
    reference = read_golden(golden_dir)
    assert golden(model, reference).status == "pass"
    with torch.no_grad():
        model.adapter.model.model.feature_adaptor.bias[0] += 0.5
    result = golden(model, reference)
    assert result.status == "fail"
    assert "event_features" in result.observed
    assert json.loads((golden_dir / "golden.json").read_text())["cases"], "there was something to compare"


def test_whole_verification_names_the_failed_check(demo_model, demo_sample):
    from unfuse.errors import VerificationError

    outcome = verify_model(staged(demo_model, Ignores), demo_sample, max_new_tokens=2)
    names = [result.name for result in outcome.results]
    assert names == [
        "encode-once",
        "same-output",
        "work",
        "features-used",
        "scenes-apart",
        "store-hit",
        "golden",
        "backward-compatible",
        "sampling",
        "speculation-equal",
        "timing-additive",
        "hooks-agree",
        "steady",
    ]
    assert not outcome.passed
    assert [r.reason for r in outcome.results if r.status == "skip"] == ["no golden set given (--golden DIR)"]
    with pytest.raises(VerificationError, match="features-used"):
        outcome.raise_if_failed()
