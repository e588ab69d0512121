"""``same-output`` against engines and adapters that compute something else."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch

from tests.verification.test_verification import FirstFrameOnly, Ignores, staged
from unfuse.adapters.eventgpt import EventGPTAdapter
from unfuse.engines.eager import EagerEngine
from unfuse.features import Features
from unfuse.loading import load
from unfuse.verification.checks import prepare_subject
from unfuse.verification.same_output import float32_copy, same_output

TOKENS = 16
module = importlib.import_module("unfuse.verification.same_output")  # the package has a function of this name
DTYPES = ["float32", "bfloat16"]


@pytest.fixture(scope="module", params=DTYPES)
def model(request):
    with load("demo", device="cpu", dtype=request.param) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def half():
    with load("demo", device="cpu", dtype="bfloat16") as loaded:
        yield loaded


def checked(model, sample, adapter=EventGPTAdapter, engine=EagerEngine, tokens=TOKENS):
    broken = staged(model, adapter, engine(model.adapter.language))
    return same_output(prepare_subject(broken, sample, tokens))


class Scaled(EventGPTAdapter):
    """Features that are 0.05 % too large: less than bfloat16 resolves."""

    def prompt(self, prepared, features, *, digest):
        features = Features(features.tensor * 1.0005, features.provenance)
        return super().prompt(prepared, features, digest=digest)


class Transposed(EventGPTAdapter):
    """The last two positions of the features are swapped."""

    def prompt(self, prepared, features, *, digest):
        order = [*range(len(features.tensor) - 2), len(features.tensor) - 1, len(features.tensor) - 2]
        return super().prompt(prepared, Features(features.tensor[order], features.provenance), digest=digest)


class Stops(EagerEngine):
    """Ends an answer after five tokens."""

    def decode(self, prefilled, max_new_tokens, drafts=None):
        return super().decode(prefilled, min(max_new_tokens, 5), drafts)


class Silent(EagerEngine):
    """Gives no token."""

    def decode(self, prefilled, max_new_tokens, drafts=None):
        return iter(())


class GoesOn(EagerEngine):
    """Goes on after the end token."""

    def is_end(self, token_id):
        return False


class WrongLater(EagerEngine):
    """Right logits for ten tokens, then logits that are slightly wrong, without a change of the best token."""

    def _step(self, token, state, offset):
        logits = super()._step(token, state, offset)
        return logits * 1.05 if offset > 10 else logits


class OtherToken(EagerEngine):
    """Honest when it is forced; its own answer has another token at the end."""

    def decode(self, prefilled, max_new_tokens, drafts=None):
        tokens = list(super().decode(prefilled, max_new_tokens, drafts))
        yield from [*tokens[:-1], (tokens[-1] + 1) % 600]


class Noisy(EagerEngine):
    """Adds noise to its logits, so that its own error is large."""

    def _step(self, token, state, offset):
        logits = super()._step(token, state, offset)
        return logits + torch.randn(logits.shape, generator=torch.Generator().manual_seed(offset))


def test_a_sound_model_passes(model, demo_sample):
    result = checked(model, demo_sample)
    assert result.status == "pass", result
    assert "float32" in result.observed
    assert "not compared" not in result.observed


@pytest.mark.parametrize("engine", [Silent, Stops, GoesOn, WrongLater, OtherToken, Noisy])
def test_a_broken_engine_fails(model, demo_sample, engine):
    # Long enough for the end token of the answer, which has 20 tokens.
    result = checked(model, demo_sample, engine=engine, tokens=24)
    assert result.status == "fail", result


@pytest.mark.parametrize("adapter", [Ignores, FirstFrameOnly, Scaled, Transposed])
def test_a_broken_adapter_fails(model, demo_sample, adapter):
    assert checked(model, demo_sample, adapter).status == "fail"


def test_the_float32_copy_finds_what_rounding_hides(half, demo_sample, monkeypatch):
    broken = staged(half, Scaled)
    subject = prepare_subject(broken, demo_sample, TOKENS)
    assert not module.compare(broken, subject.prepared, TOKENS).problems
    assert same_output(subject).status == "fail"
    monkeypatch.setattr(module, "available_bytes", lambda _: 1000)
    hidden = same_output(subject)
    assert hidden.status == "pass"
    assert "float32: not compared, the copy needs" in hidden.observed


def test_the_float32_copy_leaves_the_model_as_it_is(half):
    before = {name: tensor.clone() for name, tensor in half.adapter.model.state_dict().items()}
    twin = float32_copy(half)
    assert (twin.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    assert twin.adapter.preprocessor is half.adapter.preprocessor
    for name, tensor in twin.adapter.model.state_dict().items():
        assert torch.equal(tensor, before[name].to(tensor.dtype)), name
        assert half.adapter.model.state_dict()[name].dtype == before[name].dtype


@pytest.fixture
def twins(half):
    """A model in which another token is as likely as the answer's fourth token, but for rounding."""
    sample_token = 3
    with load("demo", device="cpu", dtype="bfloat16") as made:
        from unfuse.samples.demo import demo_sample

        subject = prepare_subject(made, demo_sample("demo:0"), TOKENS)
        features = made.encode(subject.prepared)
        tokens = made.decode(made.prefill(subject.prepared, features), TOKENS).token_ids
        token = tokens[sample_token]
        other = next(i for i in range(300, 600) if i not in tokens)
        head = made.adapter.language.head.weight
        with torch.no_grad():
            head[other] = head[token]
        yield made, min(token, other), max(token, other)


def near_tie_engine(first, second, *, rubbish):
    """Return an engine that writes the second of two equally likely tokens, and then goes on."""

    class NearTie(EagerEngine):
        def _decode(self, prefilled, max_new_tokens):
            state, token = prefilled.state, prefilled.token_id
            swapped = False
            for count in range(1, max_new_tokens + 1):
                if token in (first, second) and not swapped:
                    token, swapped = second, True
                elif swapped and rubbish:
                    token = 100 + count
                yield token
                if self.is_end(token) or count == max_new_tokens:
                    break
                token = int(self._step(token, state, count - 1).argmax())
            self.score(prefilled, [prefilled.token_id])  # crops the cache

    return NearTie


@pytest.mark.parametrize("rubbish", [False, True])
def test_the_comparison_goes_on_after_a_near_tie(twins, demo_sample, rubbish, monkeypatch):
    made, first, second = twins
    monkeypatch.setattr(module, "available_bytes", lambda _: 0)  # in float32 no other token is accepted
    result = checked(made, demo_sample, engine=near_tie_engine(first, second, rubbish=rubbish))
    assert result.status == ("fail" if rubbish else "pass"), result
    if not rubbish:
        assert f"{second} (logit" in result.observed
        assert "near tie at token" in result.observed
        assert "margin 0.0" in result.observed


def test_a_near_tie_fails_in_float32(demo_sample):
    with load("demo", device="cpu") as made:
        head = made.adapter.language.head.weight
        subject = prepare_subject(made, demo_sample, TOKENS)
        prefilled = made.prefill(subject.prepared, made.encode(subject.prepared))
        token = made.decode(prefilled, TOKENS).token_ids[3]
        with torch.no_grad():
            head[500] = head[token] * (1 - 1e-6)
        result = checked(made, demo_sample, engine=near_tie_engine(token, 500, rubbish=False))
    assert result.status == "fail", result


def test_the_tolerance_does_not_grow_with_the_error_of_the_stages(half, demo_sample):
    subject = prepare_subject(half, demo_sample, TOKENS)
    noisy = staged(half, EventGPTAdapter, Noisy(half.adapter.language))
    sound = module.compare(half, subject.prepared, TOKENS)
    loud = module.compare(noisy, subject.prepared, TOKENS)
    assert loud.difference > 4 * sound.limit
    assert loud.limit == sound.limit <= module.LOGIT_CAP[torch.bfloat16]


def test_logits_that_are_not_finite_are_infinitely_different():
    ours = torch.tensor([[1.0, float("nan")]])
    assert module._largest_difference(ours, torch.ones(1, 2)) == float("inf")
    assert module._largest_difference(torch.ones(2, 2), torch.ones(1, 2)) == float("inf")


def test_a_family_without_batches_has_a_tolerance(demo_model, demo_sample):
    class Alone(EventGPTAdapter):
        def fused_generate(self, prepared, **settings):
            if len(prepared) > 1:
                raise RuntimeError("no batches")
            return super().fused_generate(prepared, **settings)

    assert checked(demo_model, demo_sample, Alone).status == "pass"


def test_forced_tokens_are_written(demo_model, demo_sample):
    subject = prepare_subject(demo_model, demo_sample, TOKENS)
    tokens = (300, 17, 410)
    found = module._fused(demo_model, subject.prepared, len(tokens), tokens)
    assert found.token_ids == tokens
    assert found.logits is not None
    prefilled = demo_model.prefill(subject.prepared, demo_model.encode(subject.prepared))
    torch.testing.assert_close(demo_model.engine.score(prefilled, tokens), found.logits, rtol=1e-4, atol=1e-4)
    assert replace(found, logits=None).token_ids == tokens
