"""The checks of ``verify`` on a GPU, with the engine that is the default there. Skipped, and listed, elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "adapters"))

import families

from unfuse.adapters.registry import load
from unfuse.samples.demo import demo_sample
from unfuse.verification import checks, verify_model
from unfuse.verification.checks import Subject
from unfuse.verification.golden import read_golden

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

EAGER = {"gemma3": "no LLaMA", "paligemma": "no LLaMA"}
"""Families whose language model is of another kind, and a word of the reason."""
CHECKS = [checks.encode_once, checks.same_output, checks.features_used, checks.backward_compatible]


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request):
    return request.param


@pytest.fixture(scope="module", params=list(families.FAMILIES))
def family(request, dtype):
    built = families.build(request.param, device="cuda", dtype=dtype, engine="auto")
    yield built
    built.staged.close()


def test_engine_is_the_one_that_serves_the_family(family):
    if family.name in EAGER:
        assert family.staged.engine.name == "eager"
        assert any("in the place of graphed" in note for note in family.staged.notes), family.staged.notes
    else:
        assert (family.staged.engine.name, family.staged.notes) == ("graphed", ())


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_families(family, check):
    prepared = family.prepare(2, "What moves?")
    result = check(Subject(family.staged, None, prepared, 12))
    assert result.status == "pass", result


def rows(verification):
    return {row.name: row for row in verification.results}


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_demo(name):
    with load("demo", device="cuda", dtype=name) as model:
        assert model.engine.name == "graphed", model.notes
        found = rows(verify_model(model, demo_sample("demo:0"), max_new_tokens=24))
    assert {key: row for key, row in found.items() if row.status == "fail"} == {}
    assert [key for key, row in found.items() if row.status == "skip"] == ["golden"]


def test_golden_checkpoint(golden_dir):
    checkpoint = golden_dir / "checkpoints" / "EventGPT-tiny"
    with load(str(checkpoint), device="cuda", dtype="float32") as model:
        assert model.engine.name == "graphed", model.notes
        found = rows(verify_model(model, demo_sample("demo:0"), max_new_tokens=24, reference=read_golden(golden_dir)))
    assert {key: row for key, row in found.items() if row.status == "fail"} == {}
    assert found["golden"].status == "pass", found["golden"]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_every_device_answers_as_the_first_does():
    sample = demo_sample("demo:0")
    with load("demo", device="cuda:1") as second, load("demo", device="cuda:0") as first:
        said = []
        for _ in range(2):
            for model in (first, second):
                assert model.engine.name == "graphed", model.notes
                features = model.encode(sample)
                assert features.tensor.device == model.device
                answers = [
                    model.generate(question, features, max_new_tokens=24).token_ids
                    for question in ("What moves?", "Is it raining?")
                ]
                said.append(answers)
    assert all(answers == said[0] for answers in said)
