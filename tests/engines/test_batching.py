"""Requests that join and leave: the same tokens as each alone."""

from collections import defaultdict

import pytest
import torch

import unfuse
from unfuse.samples.demo import demo_dataset
from unfuse.stages import Sampling

QUESTIONS = ("What moves?", "Which way does the disc move?", "Is it raining?")


@pytest.fixture(scope="module")
def model():
    with unfuse.load("demo", device="cpu") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def scenes(model):
    return [model.encode(sample) for sample in demo_dataset(max_samples=3).samples]


def written(batch, requests, *, late=()):
    batch.add(requests)
    ids, ends = defaultdict(list), {}
    while batch.unfinished:
        for token in batch.step():
            ids[token.request_id].append(token.token_id)
            assert token.request_id not in ends
            if token.finished:
                ends[token.request_id] = token.finished
        if late:
            batch.add(late)
            late = ()
    return {name: tuple(tokens) for name, tokens in ids.items()}, ends


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.7, top_p=0.9, seed=3)], ids=["greedy", "sampled"]
)
@pytest.mark.parametrize("capacity", [1, 2, 8])
def test_tokens_equal_those_of_each_request_alone(model, scenes, capacity, sampling):
    questions = [(f"{i} {q}", q, scene) for i, scene in enumerate(scenes) for q in QUESTIONS]
    lengths = [1, 3, 24]
    requests = [
        model.request(name, q, scene, max_new_tokens=lengths[n % 3], sampling=sampling)
        for n, (name, q, scene) in enumerate(questions)
    ]
    batch = model.continuous(capacity)
    ids, ends = written(batch, requests[:4], late=requests[4:])
    for n, (name, q, scene) in enumerate(questions):
        alone = model.generate(q, scene, max_new_tokens=lengths[n % 3], sampling=sampling, reuse=False)
        assert ids[name] == alone.token_ids
        assert ends[name] == alone.stop_reason
    assert batch.busy_s["prefill"] > 0
    assert batch.busy_s["decode"] > 0
    assert not batch.unfinished
    assert batch.step() == []


def test_an_aborted_request_gets_no_more_tokens(model, scenes):
    batch = model.continuous(2)
    batch.add([model.request(str(n), "What moves?", scenes[0], max_new_tokens=16) for n in range(4)])
    batch.step()
    batch.abort("0")
    batch.abort("3")
    batch.abort("nobody")
    assert batch.unfinished == 2
    ids, _ = written(batch, [])
    assert set(ids) == {"1", "2"}


def test_close_removes_all_requests(model, scenes):
    batch = model.continuous()
    batch.add([model.request("a", "What moves?", scenes[0])])
    batch.step()
    batch.close()
    batch.close()
    assert not batch.unfinished


def test_scenes_encoded_together_equal_each_alone(model):
    prepared = [model.preprocess(model.load(sample)) for sample in demo_dataset(max_samples=3).samples]
    for one, together in zip(prepared, model.encode_batch(prepared), strict=True):
        alone = model.encode(one)
        assert together.provenance == alone.provenance
        assert float((together.tensor - alone.tensor).norm() / alone.tensor.norm()) < 1e-5


def test_a_request_that_is_not_finite_fails_alone(model, scenes):
    bad = scenes[0].clone()
    bad.tensor[3] = float("nan")
    requests = [
        model.request(name, QUESTIONS[0], features, max_new_tokens=4)
        for name, features in (("one", scenes[0]), ("bad", bad), ("two", scenes[1]))
    ]
    batch = model.continuous(2)
    batch.add(requests)
    outputs = []
    while batch.unfinished:
        outputs += batch.step()
    (failure,) = [output for output in outputs if output.error is not None]
    assert (failure.request_id, failure.token_id, failure.finished) == ("bad", -1, None)
    assert str(failure.error).startswith("encode: features are not finite: found NaN in")
    for name, features in (("one", scenes[0]), ("two", scenes[1])):
        alone = model.generate(QUESTIONS[0], features, max_new_tokens=4, reuse=False)
        assert tuple(output.token_id for output in outputs if output.request_id == name) == alone.token_ids


def test_a_later_token_that_is_not_finite_fails_its_request(model, scenes):
    requests = [model.request(str(i), q, scenes[0], max_new_tokens=6) for i, q in enumerate(QUESTIONS[:2])]
    head = model.adapter.language.head
    calls = []

    def spoil(_, __, logits):
        calls.append(logits)
        return torch.full_like(logits, float("nan")) if len(calls) == 5 else logits

    batch = model.continuous(2)
    batch.add(requests)
    handle = head.register_forward_hook(spoil)
    try:
        outputs = []
        while batch.unfinished:
            outputs += batch.step()
    finally:
        handle.remove()
    assert [(o.request_id, o.error.stage) for o in outputs if o.error is not None] == [("0", "decode")]
    assert sum(o.request_id == "1" for o in outputs) > 3
