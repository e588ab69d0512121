import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from unfuse.engines.positions import following, sampling_positions
from unfuse.engines.sampling import TokenChooser, exponential_noise, hashed_seed, index_steps
from unfuse.errors import PromptError
from unfuse.stages import Prompt, Sampling

CPU = torch.device("cpu")
NO_END = torch.tensor([], dtype=torch.long)
LOGITS = torch.randn(50, generator=torch.Generator().manual_seed(0))


def chooser(**settings):
    return TokenChooser(Sampling(**settings), NO_END, CPU)


def split_mix(value):
    """Finalizer of SplitMix64 in Python's integers."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = (value ^ value >> shift) * factor % 2**64
    return value ^ value >> 31


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**31 - 1))
@examples(50)
def test_noise_is_that_of_its_formula(seed, position):
    step = 0x9E3779B97F4A7C15
    key = split_mix((split_mix((seed + step) % 2**64) + (position + 1) * step) % 2**64)
    bits = [split_mix((key + index * step) % 2**64) >> 41 for index in range(1, 5)]
    expected = -np.log((np.array(bits) + 0.5) * 2.0**-23)
    found = exponential_noise(torch.tensor(hashed_seed(seed)), torch.tensor(position), index_steps(4, CPU))
    assert found.numpy() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_noise_is_exponential_and_independent():
    noise = exponential_noise(torch.tensor(hashed_seed(5)), torch.arange(200), index_steps(500, CPU))
    assert float(noise.min()) > 0
    assert torch.isfinite(noise).all()
    assert float(noise.mean()) == pytest.approx(1, abs=0.02)
    assert float(noise.var()) == pytest.approx(1, abs=0.05)
    for rows in (noise, noise.T):
        correlation = torch.corrcoef(rows) - torch.eye(len(rows))
        assert float(correlation.abs().max()) < 0.4
        assert float(correlation.mean().abs()) < 1e-3


def test_draws_are_multinomials():
    positions = torch.arange(4000)
    drawn = chooser(temperature=1.0, seed=3)(LOGITS.expand(4000, -1), positions)
    counts = torch.bincount(drawn, minlength=50) / 4000
    assert float((counts - torch.softmax(LOGITS, dim=-1)).abs().max()) < 0.03


def test_top_p_keeps_the_nucleus():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    drawn = chooser(temperature=1.0, top_p=0.75)(logits.expand(400, -1), torch.arange(400)).tolist()
    assert set(drawn) == {0, 1}
    # 0.5 / 0.8 = 0.625; six standard deviations of 400 draws are 0.145.
    assert abs(drawn.count(0) / 400 - 0.625) < 0.145


@pytest.mark.parametrize("settings", [{}, {"temperature": 3.0, "top_p": 0.9, "seed": 4}])
def test_rows_of_a_batch_are_drawn_as_each_alone(settings):
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    choose = chooser(**settings)
    for start in range(0, 60, 3):
        positions = torch.tensor([start, start + 40, start])
        alone = [int(choose(row, position)) for row, position in zip(logits, positions, strict=True)]
        assert choose(logits, positions).tolist() == alone


def test_a_draw_is_a_function_of_seed_and_position():
    def draws(choose):
        return choose(LOGITS.expand(30, -1), torch.arange(30)).tolist()

    choose = chooser(temperature=2.0, seed=1)
    first = draws(choose)
    assert draws(choose) == first
    assert draws(chooser(temperature=2.0, seed=2)) != first
    choose.set(Sampling(temperature=2.0, seed=2))
    assert draws(choose) == draws(chooser(temperature=2.0, seed=2))
    assert len(set(first)) > 5


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64 - 1, 10**30, -(10**30)])
def test_any_integer_is_a_seed(seed):
    assert 0 <= int(chooser(temperature=1.0, seed=seed)(LOGITS, 7)) < 50


def test_an_integer_of_numpy_is_a_seed():
    assert Sampling(seed=np.int64(7)) == Sampling(seed=7)


@pytest.mark.parametrize("seed", [1.5, 42.0, "1", None])
def test_another_kind_of_seed_is_refused(seed):
    with pytest.raises(PromptError, match="seed: found .*, expected an integer"):
        Sampling(seed=seed)


@pytest.mark.parametrize("positions", [None, "given"])
def test_padding_does_not_count(positions):
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    ids = None if positions is None else (mask.cumsum(-1) - 1).clamp(min=0)
    prompt = Prompt(inputs_embeds=torch.zeros(2, 4, 8), attention_mask=mask, position_ids=ids)
    assert sampling_positions(following(ids), prompt).tolist() == [2, 4]


def test_an_end_token_is_masked():
    logits = torch.tensor([0.0, 5.0, 1.0])
    for settings in ({}, {"temperature": 1.0}):
        choose = TokenChooser(Sampling(ignore_eos=True, **settings), torch.tensor([1]), CPU)
        assert {int(choose(logits, at)) for at in range(100)} <= {0, 2}
