"""``speculation-equal`` against engines and drafters that break one promise each."""

from __future__ import annotations

import pytest
import torch

from unfuse.engines.base import DraftSupport
from unfuse.engines.eager import EagerEngine
from unfuse.speculation.history import History
from unfuse.staged_model import StagedModel
from unfuse.verification.checks import prepare_subject
from unfuse.verification.speculation import speculation_equal


def check(demo_model, demo_sample, engine=EagerEngine, drafter=None, tokens=12):
    model = StagedModel("demo", demo_model.adapter, engine(demo_model.adapter.language))
    return speculation_equal(prepare_subject(model, demo_sample, tokens), drafter)


@pytest.mark.parametrize("tokens", [1, 2, 12])
def test_the_reference_passes(demo_model, demo_sample, tokens):
    result = check(demo_model, demo_sample, tokens=tokens)
    assert result.status == "pass", result
    assert result.observed == f"{tokens} tokens with right, partly wrong, wrong drafts: all bits equal"


def test_an_engine_that_ignores_drafts_is_skipped(demo_model, demo_sample):
    class Ignores(EagerEngine):
        draft_support = DraftSupport(verified=False, note="it has no room")

    result = check(demo_model, demo_sample, Ignores)
    assert (result.status, result.reason) == ("skip", "it has no room")


class AcceptsOneTooMany(EagerEngine):
    """Accept a drafted token that the model did not choose."""

    def decode(self, prefilled, max_new_tokens, drafts=None):
        tokens = list(super().decode(prefilled, max_new_tokens, drafts))
        if drafts is not None and 0 in drafts.counts.accepted:
            tokens[-1] += 1
        yield from tokens


class AcceptsOneTooFew(EagerEngine):
    """Count the last accepted token of each pass as rejected."""

    def decode(self, prefilled, max_new_tokens, drafts=None):
        yield from super().decode(prefilled, max_new_tokens, drafts)
        if drafts is not None:
            drafts.counts.accepted = [max(0, accepted - 1) for accepted in drafts.counts.accepted]


class KeepsRejectedEntries(EagerEngine):
    """Leave the keys and values of a drafted token in the prompt's cache."""

    def decode(self, prefilled, max_new_tokens, drafts=None):
        yield from super().decode(prefilled, max_new_tokens, drafts)
        if drafts is not None:
            for layer in prefilled.state.cache.layers:
                layer.values = layer.values.clone()
                layer.values[:, :, -1] += 1


class RoundsByNumberOfTokens(EagerEngine):
    """Give logits that differ in a bit when drafts are verified."""

    def score(self, prefilled, token_ids, drafts=None):
        logits = super().score(prefilled, token_ids, drafts)
        return logits if drafts is None else torch.nextafter(logits, logits.new_tensor(float("inf")))


class NotANumber(EagerEngine):
    """Give NaN in the place of a logit."""

    def score(self, prefilled, token_ids, drafts=None):
        logits = super().score(prefilled, token_ids, drafts).clone()
        logits[-1, 0] = float("nan")
        return logits


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        (AcceptsOneTooMany, "wrong drafts change the tokens"),
        (AcceptsOneTooFew, "passes and"),
        (KeepsRejectedEntries, "drafts change the KV cache of the prompt"),
        (RoundsByNumberOfTokens, "right drafts change the logits"),
        (NotANumber, "change the logits"),
    ],
)
def test_a_broken_engine_fails(demo_model, demo_sample, engine, words):
    result = check(demo_model, demo_sample, engine)
    assert result.status == "fail"
    assert words in result.observed


class Foresees(History):
    """Learn an answer while it is decoded."""

    def begin(self, prompt_ids):
        drafts = super().begin(prompt_ids)
        given, draft = [], drafts.draft

        def learning(new_tokens):
            given.extend(new_tokens)
            self.learn(given)
            return draft(new_tokens)

        drafts.draft = learning
        return drafts


def test_a_drafter_that_sees_the_future_fails(demo_model, demo_sample):
    vocabulary = len(demo_model.adapter.language.embed.weight)
    result = check(demo_model, demo_sample, drafter=Foresees(vocabulary, [2], draft_tokens=15))
    assert result.status == "fail"
    assert "the drafter knows an answer that it has not learnt" in result.observed
    assert check(demo_model, demo_sample, drafter=History(vocabulary, [2], draft_tokens=15)).status == "pass"
