"""Decode passes over drafted tokens: the bits of one-token steps, in tokens, logits and KV cache."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.cuda.test_megakernel import KINDS, hopper, language, prompt, same_bits
from unfuse.engines.graphed.engine import GraphedEngine
from unfuse.loading import load
from unfuse.samples.demo import demo_sample
from unfuse.speculation.drafter import SpeculationCounts
from unfuse.speculation.history import History
from unfuse.stages import Sampling

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not hopper(), reason="no device of the Hopper generation or later"),
]

KEPT = Sampling(ignore_eos=True)


class Guess:
    """Draft the tokens of a known answer, some of them wrong."""

    def __init__(self, answer, wrong=0.0, seed=0):
        self.answer, self.wrong, self.at = answer, wrong, 0
        self.random, self.counts = np.random.default_rng(seed), SpeculationCounts()

    pauses = False

    def draft(self, new_tokens):
        self.at += len(new_tokens)
        draft = np.array(self.answer[self.at :][: self.random.integers(16)], np.int64)
        return np.where(self.random.random(len(draft)) < self.wrong, self.random.integers(0, 60), draft)

    def record(self, drafted, accepted):
        self.counts.drafted.append(drafted)
        self.counts.accepted.append(accepted)


@pytest.fixture(scope="module", params=KINDS)
def engine(request, tmp_path_factory):
    made = GraphedEngine(language(request.param), tuning=tmp_path_factory.mktemp("tuning"))
    assert made.draft_support.faster, made.notes
    yield made
    made.close()


@pytest.fixture(scope="module")
def model(engine):
    return engine._language


@pytest.mark.parametrize("wrong", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(
    "sampling", [Sampling(), KEPT, Sampling(temperature=0.7, top_p=0.9, seed=3), Sampling(temperature=1.5, seed=4)]
)
def test_tokens(engine, model, sampling, wrong):
    for length in (1, 40, 63, 64, 65, 700):
        prefilled = engine.prefill(prompt(model, length), sampling)
        for most in (1, 2, 17, 90):
            expected = list(engine.decode(prefilled, most))
            drafts = Guess(expected, wrong, seed=most)
            assert list(engine.decode(prefilled, most, drafts)) == expected, (length, most)
            assert drafts.counts.decode_passes + drafts.counts.accepted_tokens == len(expected) - 1


@pytest.mark.parametrize("wrong", [0.0, 0.3])
def test_logits_and_cache(engine, model, wrong):
    for length in (30, 64, 600):
        prefilled = engine.prefill(prompt(model, length), KEPT)
        tokens = torch.randint(2, 60, (150,), generator=torch.Generator().manual_seed(length)).tolist()
        off = engine.score(prefilled, tokens)
        cache = prefilled.state.cache.buffer[:, :, :, : length + len(tokens) - 1].clone()
        on = engine.score(prefilled, tokens, Guess(tokens, wrong))
        assert off.isfinite().all()
        assert same_bits(on, off)
        assert same_bits(prefilled.state.cache.buffer[:, :, :, : length + len(tokens) - 1], cache)


def test_an_end_at_every_position_of_a_draft(engine, model):
    prefilled = engine.prefill(prompt(model, 50), KEPT)
    for end in range(1, 18):
        tokens = [7, *[5] * end, 1]
        forced = engine._speculative_run(engine._runner.megakernel, prefilled, 60, Guess([*tokens, 5]))
        forced.force([*tokens, *[5] * 20])
        assert list(forced.tokens()) == tokens[1:]


def test_answers_take_turns_and_caches_grow(engine, model):
    prefilled = [engine.prefill(prompt(model, length), KEPT) for length in (9, 33)]
    expected = [list(engine.decode(each, 1200)) for each in prefilled]
    fresh = [engine.prefill(prompt(model, length), KEPT) for length in (9, 33)]
    runs = [engine.decode(each, 1200, Guess(answer, 0.2)) for each, answer in zip(fresh, expected, strict=True)]
    written = [[], []]
    for turn in range(2400):
        written[turn % 2].append(next(runs[turn % 2]))
    assert written == expected


def test_an_answer_that_is_left_disturbs_no_other(engine, model):
    prefilled = engine.prefill(prompt(model, 20), KEPT)
    expected = list(engine.decode(prefilled, 60))
    for taken in (1, 2, 5, 30):
        answer = engine.decode(prefilled, 60, Guess(expected))
        assert [next(answer) for _ in range(taken)] == expected[:taken]
        answer.close()
        assert list(engine.decode(prefilled, 60, Guess(expected))) == expected
        assert list(engine.decode(prefilled, 60)) == expected


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.9, seed=1)])
def test_the_demo_with_a_history(sampling):
    with load("demo", device="cuda") as off, load("random:eventgpt-7b", device="cuda") as large:
        assert isinstance(large.drafter, History)
        for model in (off, large):
            features = model.encode(demo_sample("demo:1"))
            questions = ["What moves?", "Which way does it move?", "What moves?"]
            for question in questions:
                prepared = model.adapter.tokenize(question, features)
                plain = model.decode(model.prefill(prepared, features, sampling), 40)
                found = model.generate(question, features, max_new_tokens=40, sampling=sampling, reuse=False)
                assert found.token_ids == plain.token_ids
            if model.drafter is not None:
                assert found.speculation.accepted_tokens > 20
