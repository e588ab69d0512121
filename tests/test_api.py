"""The public calls."""

from __future__ import annotations

import pytest

import unfuse
from unfuse.benchmarking import BenchSettings
from unfuse.errors import InputError, PromptError


def test_public_bench_and_verify(demo_model):
    run = unfuse.bench(demo_model, max_samples=1, max_new_tokens=3, num_warmups=1, balance_seconds=0.0)
    assert run.summary().num_ok == 1
    outcome = unfuse.verify(demo_model, max_new_tokens=2)
    assert {r.name for r in outcome.results} >= {"encode-once", "same-output"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"protocol": "psychic"}, "psychic"),
        ({"models": ["demo", "demo"]}, "demo twice"),
        ({"max_samples": 0}, "max-samples"),
        ({"num_warmups": -1}, "num-warmups"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(InputError, match=words):
        unfuse.bench(**arguments)


def test_models_may_come_from_a_generator():
    with pytest.raises(InputError, match="demo twice"):
        unfuse.bench(name for name in ("demo", "demo"))


def test_settings_are_checked():
    with pytest.raises(PromptError):
        BenchSettings(temperature=-1)
    assert BenchSettings(output_length=7).sampling.ignore_eos
    assert BenchSettings(output_length=7).token_limit == 7
