"""The checks of ``verify`` on a GPU, with the engine that is the default there. Skipped, and listed, elsewhere."""

from __future__ import annotations

import gc

import pytest
import torch

from tests.adapters import families
from unfuse.benchmarking.counted_work import count_prepared
from unfuse.loading import load
from unfuse.report.counted_work import work_problems
from unfuse.samples.demo import demo_sample
from unfuse.verification import checks, verify_model
from unfuse.verification.checks import Subject
from unfuse.verification.golden import read_golden
from unfuse.verification.same_output import same_output
from unfuse.verification.watch import watch_vision

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

EAGER = {"gemma3": "no LLaMA", "paligemma": "no LLaMA"}
"""Families with an unsupported language model, and a word of the reason."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.03}
"""Largest relative distance of features of one scene, encoded in batches of other sizes."""
WORKSPACE = 34 << 20
"""Bytes a stream, as PyTorch gives the library on Hopper (33 MiB on an H200); engine and caller have a stream each."""
TIMING = ("timing-additive", "hooks-agree", "steady")
"""Checks of ``verify`` that read the clock: other work beside a test fails them."""
CHECKS = [checks.encode_once, same_output, checks.features_used, checks.backward_compatible]


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
        assert any("instead of graphed" in note for note in family.staged.notes), family.staged.notes
    else:
        assert (family.staged.engine.name, family.staged.notes) == ("graphed", ())


def test_the_stages_execute_the_work_of_the_model(family):
    """Replays of graphs and launches of kernels declare it; eager families are counted by torch."""
    assert not work_problems(count_prepared(family.staged, family.prepare(2, "What moves?")))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_families(family, check):
    prepared = family.prepare(2, "What moves?")
    result = check(Subject(family.staged, None, prepared, 12))
    assert result.status == "pass", result


def test_scenes_encoded_together_are_those_encoded_alone(family):
    """On the towers' graphs, of other shapes for more scenes; two are alike, and the last is like them."""
    staged = family.staged
    prepared = [family.prepare(n, "What moves?", seed=i) for i, n in enumerate([2, 2, 3, 0, 2])]
    alone = [staged.encode(each) for each in prepared]
    with watch_vision(family.adapter.vision_modules()) as calls:
        together = staged.encode_batch(prepared)
    once = [family.adapter.vision_calls(each) for each in (prepared[0], prepared[2])]
    assert calls.by_name == {name: sum(each[name] for each in once) for name in once[0]}
    for one, other in zip(alone, together, strict=True):
        assert (one.provenance, one.layout) == (other.provenance, other.layout)
        for mine, own in zip((other.tensor, *other.layers), (one.tensor, *one.layers), strict=True):
            assert (mine.float() - own.float()).norm() <= TOLERANCE[own.dtype] * own.float().norm()
    first, second = (each.tensor.float() for each in together[:2])
    assert (first - second).norm() > 10 * TOLERANCE[torch.bfloat16] * first.norm(), "other pictures"
    if together[0].tensor.dtype == torch.float32:
        for each, *features in zip(prepared, alone, together, strict=True):
            one, other = (staged.generate(each.question, f, max_new_tokens=12, reuse=False) for f in features)
            assert one.token_ids == other.token_ids


def test_a_closed_engine_leaves_nothing_on_the_device():
    """Except cuBLAS's workspace of a stream: it belongs to the process, and the next engine reuses it."""
    sample = demo_sample("demo:0")
    gc.collect()
    others = torch.cuda.memory_allocated()
    with load("demo", device="cuda") as model:
        runner = model.adapter.model
        weights = sum(each.nbytes for each in (*runner.parameters(), *runner.buffers()))

        def left():
            features = model.encode(sample)
            tokens = [
                model.generate(q, features, max_new_tokens=16).token_ids for q in ("What moves?", "Is it raining?")
            ]
            model.generate_batch(["What moves?"] * 3, [features] * 3, max_new_tokens=8)
            batch = model.engine.continuous()
            batch.prepare()
            batch.close()
            allocated = torch.cuda.memory_allocated() - others
            del features, batch
            model.engine.close()
            return tokens, allocated, torch.cuda.memory_allocated() - others

        (tokens, allocated, first), (again, _, second) = left(), left()
    assert tokens == again
    assert second <= first
    assert first - weights < 2 * WORKSPACE + (4 << 20), (allocated, first, weights)
    assert allocated - first > 64 << 20, (allocated, first, weights)


def rows(verification):
    return {row.name: row for row in verification.results}


def failed(found, *, timing=False):
    return {name: row for name, row in found.items() if row.status == "fail" and (name in TIMING) == timing}


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_demo(name):
    with load("demo", device="cuda", dtype=name) as model:
        assert model.engine.name == "graphed", model.notes
        found = rows(verify_model(model, demo_sample("demo:0"), max_new_tokens=24))
    assert failed(found) == {}
    assert [key for key, row in found.items() if row.status == "skip"] == ["golden"]


@pytest.mark.clock
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_timing_of_the_demo(name):
    with load("demo", device="cuda", dtype=name) as model:
        found = rows(verify_model(model, demo_sample("demo:0"), max_new_tokens=24))
    assert failed(found, timing=True) == {}
    assert found.keys() >= set(TIMING)


def test_golden_checkpoint(golden_dir):
    checkpoint = golden_dir / "checkpoints" / "EventGPT-tiny"
    with load(str(checkpoint), device="cuda", dtype="float32") as model:
        assert model.engine.name == "graphed", model.notes
        found = rows(verify_model(model, demo_sample("demo:0"), max_new_tokens=24, reference=read_golden(golden_dir)))
    assert failed(found) == {}
    assert found["golden"].status == "pass", found["golden"]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_every_device_answers_as_the_first_does():
    sample = demo_sample("demo:0")
    with load("demo", device="cuda:1") as second, load("demo", device="cuda:0") as first:
        all_answers = []
        for _ in range(2):
            for model in (first, second):
                assert model.engine.name == "graphed", model.notes
                features = model.encode(sample)
                assert features.tensor.device == model.device
                answers = [
                    model.generate(question, features, max_new_tokens=24).token_ids
                    for question in ("What moves?", "Is it raining?")
                ]
                all_answers.append(answers)
    assert all(answers == all_answers[0] for answers in all_answers)
