"""The check ``sampling``: the demo passes, and every engine that draws otherwise fails."""

from __future__ import annotations

import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.adapters import families
from tests.examples import examples
from unfuse.engines import eager
from unfuse.engines.eager import EagerEngine
from unfuse.engines.sampling import TokenChooser, exponential_noise, hashed_seed, index_steps
from unfuse.staged_model import StagedModel
from unfuse.verification.checks import Subject, prepare_subject
from unfuse.verification.draws import Draw, TokenDistribution, noise, p_values, temperature_of, top_p_of
from unfuse.verification.sampling import FALSE_ALARM, sampling

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def subject():
    """A tiny LLaVA, whose answer ends."""
    family = families.build("llava")
    prepared = family.prepare(1, "What moves?")
    staged = family.staged
    answer = staged.decode(staged.prefill(prepared, staged.encode(prepared)), 6).token_ids
    staged.adapter.model.generation_config.eos_token_id = answer[3]
    engine = EagerEngine(replace(staged.adapter.language, end_ids=(answer[3],)))
    return Subject(StagedModel("llava", staged.adapter, engine), None, prepared, 8)


def test_a_sound_engine_passes_and_always_with_one_result(subject):
    found = sampling(subject)
    assert found.status == "pass", found
    assert sampling(subject) == found


def test_the_demo_passes(demo_model, demo_sample):
    found = sampling(prepare_subject(demo_model, demo_sample, 8), draws=16)
    assert found.status == "pass", found


class NoTemperature(TokenChooser):
    def set(self, sampling):
        super().set(replace(sampling, temperature=min(sampling.temperature, 1.0)))


class TwiceTheTemperature(TokenChooser):
    def set(self, sampling):
        super().set(replace(sampling, temperature=sampling.temperature**2))


class NoTopP(TokenChooser):
    def set(self, sampling):
        super().set(replace(sampling, top_p=1.0))


class OneSeed(TokenChooser):
    def set(self, sampling):
        super().set(replace(sampling, seed=0))


class FewSeeds(TokenChooser):
    def set(self, sampling):
        super().set(replace(sampling, seed=sampling.seed // 8))


class OneNoise(TokenChooser):
    def __call__(self, logits, positions):
        return super().__call__(logits, 0)


class OtherNoise(TokenChooser):
    """The distribution is right; the tokens are not those that the seed stands for."""

    def set(self, sampling):
        super().set(replace(sampling, seed=sampling.seed + 1000))


class Random(TokenChooser):
    """The distribution is right; no seed gives the same tokens again."""

    calls = 0

    def __call__(self, logits, positions):
        type(self).calls += 1
        return super().__call__(logits, self.calls)


class GreedyAfterTheFirst(TokenChooser):
    first = None

    def __call__(self, logits, positions):
        if type(self).first is None:
            type(self).first = int(positions)
        self._greedy = self._greedy or int(positions) > self.first
        return super().__call__(logits, positions)


class TopK(TokenChooser):
    def __call__(self, logits, positions):
        if not self._greedy and float(self._top_p) < 1:
            least = logits.topk(2).values[-1]
            logits = logits.where(logits >= least, -1e30)
            self._top_p.fill_(2)
        return super().__call__(logits, positions)


class CutBeforeTheTemperature(TokenChooser):
    def __call__(self, logits, positions):
        top_p = float(self._top_p)
        if not self._greedy and top_p < 1:
            chances, order = torch.softmax(logits, -1).sort(descending=True)
            dropped = order[chances.cumsum(-1) - chances >= top_p]
            logits = logits.index_fill(-1, dropped, -1e30)
            self._top_p.fill_(2)
        return super().__call__(logits, positions)


class NoMask(TokenChooser):
    def __init__(self, sampling, end_ids, device):
        super().__init__(replace(sampling, ignore_eos=False), end_ids, device)


class SampledAtZero(TokenChooser):
    def __init__(self, sampling, end_ids, device):
        super().__init__(sampling if sampling.temperature else replace(sampling, temperature=3.0), end_ids, device)


class TokenZeroWhenCold(TokenChooser):
    def __call__(self, logits, positions):
        token = super().__call__(logits, positions)
        return token if self._greedy or float(self._temperature) > 1e-30 else torch.zeros_like(token)


DISTRIBUTION = "another distribution|outside of the nucleus|seeds give"
SEEDS = "not those of their seed and position"


@pytest.mark.parametrize(
    ("broken", "observed"),
    [
        (NoTemperature, SEEDS),
        (TwiceTheTemperature, SEEDS),
        (NoTopP, "outside of the nucleus"),
        (OneSeed, SEEDS),
        (FewSeeds, SEEDS),
        (OneNoise, SEEDS),
        (OtherNoise, SEEDS),
        (Random, "equal seeds give other tokens"),
        (GreedyAfterTheFirst, f"later tokens: .* {SEEDS}"),
        (TopK, SEEDS),
        (CutBeforeTheTemperature, SEEDS),
        (NoMask, "an end token is chosen although it is masked"),
        (SampledAtZero, "temperature 0 gives a token that is not the argmax"),
        (TokenZeroWhenCold, "temperature 1e-45 gives a token that is not the argmax"),
    ],
)
def test_an_engine_that_draws_otherwise_fails(subject, monkeypatch, broken, observed):
    monkeypatch.setattr(eager, "TokenChooser", broken)
    if broken is GreedyAfterTheFirst:
        broken.first = None
    found = sampling(subject, draws=20)
    assert found.status == "fail", found
    assert re.search(observed, found.observed), found.observed


@pytest.mark.parametrize(
    "broken",
    [
        NoTemperature, TwiceTheTemperature, NoTopP, OneSeed, FewSeeds, OneNoise, GreedyAfterTheFirst, TopK,
        CutBeforeTheTemperature,
    ],
)  # fmt: skip
def test_the_distribution_alone_shows_it(subject, monkeypatch, broken):
    """As for an engine with random numbers of its own."""
    monkeypatch.setattr(sys.modules["unfuse.verification.sampling"], "_OWN_NOISE", ())
    monkeypatch.setattr(eager, "TokenChooser", broken)
    if broken is GreedyAfterTheFirst:
        broken.first = None
    found = sampling(subject)
    assert re.search(DISTRIBUTION, found.observed), found


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**31 - 1))
@examples(20)
def test_the_noise_is_that_of_the_engines(seed, position):
    theirs = exponential_noise(torch.tensor(hashed_seed(seed)), torch.tensor(position), index_steps(50, CPU))
    assert noise(seed, position, 50) == pytest.approx(theirs.double().numpy(), rel=1e-4, abs=1e-6)


@given(
    st.lists(st.floats(-30, 30), min_size=3, max_size=60), st.floats(0.05, 20), st.floats(0.05, 1),
    st.integers(0, 10**6),
)  # fmt: skip
@examples(40)
def test_draws_of_the_reference_pass(logits, temperature, top_p, seed):
    """Numpy draws them, with noise of its own."""
    source = TokenDistribution(np.array(logits), temperature, top_p)
    assert source.chances.sum() == pytest.approx(1)
    random = np.random.default_rng(seed)
    tokens = random.choice(len(logits), 60, p=source.chances)
    draws = [Draw(token=int(token), source=source, seed=0, position=0, before=(1,)) for token in tokens]
    found = list(p_values(draws))
    assert min(found) > FALSE_ALARM / len(found)


def test_settings_are_found():
    logits = np.random.default_rng(0).normal(size=500) * 3
    for peak in (0.35, 0.15, 0.01):
        found = temperature_of(logits, peak, (1e-3, 1e3))
        largest = TokenDistribution(logits, found, 1.0).chances.max()
        assert largest == pytest.approx(peak, rel=0.01) or found in (0.6, 1.6)
    top_p = top_p_of(logits, 1.6, 0.01)
    assert (TokenDistribution(logits, 1.6, top_p).chances > 0).sum() == 2
    assert temperature_of(np.array([0.0, 1.0]), 0.5, (0.01, 2.0)) == pytest.approx(2.0)
