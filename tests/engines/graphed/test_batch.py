"""Requests that join passes and leave steps, against each answered alone."""

from __future__ import annotations

import gc
import weakref
from collections import defaultdict
from dataclasses import replace

import pytest
import torch

from tests.engines.graphed.small import DEVICE, VOCABULARY, language, prompt
from unfuse.engines.batching import Request
from unfuse.engines.eager import EagerEngine
from unfuse.engines.graphed import batch as batch_module
from unfuse.engines.graphed import slots
from unfuse.engines.graphed.engine import GraphedEngine
from unfuse.engines.graphed.prefill import PrefillRunner
from unfuse.engines.graphed.prefix_cache import KVCachePool
from unfuse.errors import DeviceError, NonFiniteError
from unfuse.stages import Prompt, Sampling

pytestmark = pytest.mark.usefixtures("few_programs")
FREE = Sampling(ignore_eos=True)


@pytest.fixture(scope="module")
def model():
    return language()


@pytest.fixture(scope="module")
def engine(model, tmp_path_factory):
    return GraphedEngine(model, tuning=tmp_path_factory.mktemp("tuning"))


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    monkeypatch.setattr(slots, "BATCH_SIZES", (2, 4, 16))


@pytest.fixture
def batch(engine):
    made = engine.continuous(4)
    yield made
    made.close()


def alone(model, request):
    eager = EagerEngine(model)
    return list(eager.decode(eager.prefill(request.prompt, request.sampling), request.max_new_tokens))


def written(batch, late=()):
    ids, ends, reused = defaultdict(list), {}, {}
    late = list(late)
    while batch.unfinished:
        for token in batch.step():
            assert token.request_id not in ends
            ids[token.request_id].append(token.token_id)
            reused[token.request_id] = token.reused_prefix_tokens
            if token.finished:
                ends[token.request_id] = token.finished
        batch.add(late[:1])
        late = late[1:]
    assert set(ids) == set(ends)
    return ids, ends, reused


def make_request(model, name, length, seed, tokens, sampling=FREE, reuse=False):
    made = prompt(model, length, seed)
    made = replace(made, features_digest=f"scene {seed}")
    return Request(request_id=name, prompt=made, max_new_tokens=tokens, sampling=sampling, reuse=reuse)


def test_a_request_gets_the_tokens_that_it_gets_alone(model, batch):
    lengths, tokens = (3, 40, 30, 7, 25, 70, 9), (1, 4, 7, 2, 3, 3, 5)
    requests = [make_request(model, str(n), lengths[n], n, tokens[n]) for n in range(7)]
    batch.add(requests[:5])
    ids, ends, reused = written(batch, requests[5:])
    assert ids == {request.request_id: alone(model, request) for request in requests}
    assert set(ends.values()) == {"length"}
    assert set(reused.values()) == {0}
    assert batch.busy_s["prefill"] > 0
    assert batch.busy_s["decode"] > 0
    assert batch.step() == []


def test_an_answer_ends_with_its_end_token(batch, model):
    requests = []
    for seed in range(40):
        request = make_request(model, str(seed), 5, seed, 5, Sampling())
        tokens = alone(model, request)
        if len(tokens) < 5:
            requests.append((request, tokens))
        if len(requests) == 2:
            break
    else:
        pytest.fail("no answer of this model ends early")
    batch.add([request for request, _ in requests])
    ids, ends, _ = written(batch)
    assert ids == {request.request_id: tokens for request, tokens in requests}
    assert set(ends.values()) == {"eos"}


def test_sampled_rows_beside_greedy_ones(model, batch):
    sampling = Sampling(temperature=2.0, top_p=0.8, seed=5, ignore_eos=True)
    requests = [
        make_request(model, "sampled", 12, 1, 6, sampling),
        make_request(model, "greedy", 12, 2, 6),
        make_request(model, "other seed", 12, 1, 6, replace(sampling, seed=6)),
    ]
    batch.add(requests)
    ids, _, _ = written(batch)
    assert ids == {request.request_id: alone(model, request) for request in requests}
    assert ids["sampled"] != ids["other seed"]


def test_prefixes_are_reused_whoever_holds_them(model, batch):
    def further(name, seed, text):
        scene = make_request(model, name, 40, seed, 3, reuse=True)
        ids = torch.tensor(text, device=DEVICE)
        longer = Prompt(
            inputs_embeds=torch.cat([scene.prompt.inputs_embeds[:, :36], model.embed(ids)[None].detach()], dim=1),
            token_keys=(*scene.prompt.token_keys[:36], *text),
            features_digest=scene.prompt.features_digest,
        )
        return replace(scene, prompt=longer)

    requests = [
        further("a", 1, [3, 4, 5]), further("b", 1, [6, 7]), further("c", 2, [3, 4, 5]), further("d", 1, [6, 8, 9]),
    ]  # fmt: skip
    batch.add(requests)
    ids, _, reused = written(batch)
    wanted = {request.request_id: alone(model, request) for request in requests}
    assert ids == wanted
    assert reused == {"a": 0, "b": 36, "c": 0, "d": 36}
    # No request is running any more: cached prefixes are reused too.
    batch.add([replace(requests[1], request_id="again"), replace(requests[2], request_id="other", reuse=False)])
    ids, _, reused = written(batch)
    assert (ids["again"], ids["other"]) == (wanted["b"], wanted["c"])
    assert reused == {"again": 36, "other": 0}
    assert batch._cache_pool.bytes < 5 * batch._cache_pool._size(64)


def test_other_features_share_nothing(model, batch):
    first = make_request(model, "first", 40, 1, 2, reuse=True)
    batch.add([first])
    written(batch)
    batch.add([replace(first, request_id="second", prompt=replace(first.prompt, features_digest="another"))])
    assert written(batch)[2] == {"second": 0}


def test_prepared_steps_are_not_captured_again(model, batch, monkeypatch):
    batch.prepare()
    steps = dict(batch._slots._steps)
    assert {size for size, _ in steps} >= {2, 4}
    request = make_request(model, "0", 6, 3, 3)
    batch.add([request])
    assert written(batch)[0] == {"0": alone(model, request)}
    assert batch._slots._steps == steps


def test_an_aborted_request_returns_no_more_tokens(model, batch):
    batch.add([make_request(model, str(n), 5, n, 6) for n in range(6)])
    before = {token.request_id: token.token_id for token in batch.step()}
    for name in ("0", "5", "nobody"):
        batch.abort(name)
    assert batch.unfinished == 4
    ids, _, _ = written(batch)
    assert set(ids) == {"1", "2", "3", "4"}
    assert [before["3"], *ids["3"]] == alone(model, make_request(model, "3", 5, 3, 6))


def test_few_requests_join_at_once_while_others_run(model, engine, monkeypatch):
    passes = []
    own = PrefillRunner.__call__

    def counted(self, prompts):
        passes.append(len(prompts))
        return own(self, prompts)

    monkeypatch.setattr(PrefillRunner, "__call__", counted)
    monkeypatch.setattr(batch_module, "MAX_PROMPTS", 2)
    batch = engine.continuous(8, interleave=True)
    batch.add([make_request(model, str(n), 4, n, 2) for n in range(5)])
    steps = []
    while batch.unfinished:
        batch.step()
        steps.append(len(passes))
    assert steps[:3] == [1, 2, 3]
    batch.close()


def test_memory_limits_the_running_requests(model, engine, monkeypatch):
    batch = engine.continuous(8)
    size = batch._cache_pool._size(64)
    batch._cache_pool = KVCachePool(engine._runner.llama, 2 * size)
    requests = [make_request(model, str(n), 20, n, 2, reuse=True) for n in range(3)]
    batch.add(requests)
    most = 0
    ids = defaultdict(list)
    while batch.unfinished:
        for token in batch.step():
            ids[token.request_id].append(token.token_id)
        most = max(most, len(batch._running))
        assert batch._cache_pool.bytes <= 2 * size
    assert most == 2
    assert ids == {request.request_id: alone(model, request) for request in requests}
    with pytest.raises(DeviceError, match="200 positions"):
        batch.add([make_request(model, "long", 100, 1, 100)])
    assert batch.unfinished == 0
    batch.close()


def test_a_request_replaces_the_cache_of_its_prefix_in_a_full_pool(model, batch):
    """Otherwise a request with a common prefix would wait for others to end, for ever if there are no others."""
    batch._cache_pool = KVCachePool(batch._runner.llama, batch._cache_pool._size(64))
    first, second = (
        make_request(model, "first", 40, 1, 2, reuse=True),
        make_request(model, "second", 40, 1, 3, reuse=True),
    )
    batch.add([first, second])
    ids = defaultdict(list)
    for _ in range(20):
        for token in batch.step():
            ids[token.request_id].append(token.token_id)
    assert not batch.unfinished
    assert ids == {request.request_id: alone(model, request) for request in (first, second)}


def test_prompts_with_decoder_inputs_run_in_the_fallback(model, batch):
    plain = make_request(model, "plain", 6, 1, 4)
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool, device=DEVICE).tril()
    other = replace(plain, request_id="masked", prompt=replace(plain.prompt, decoder_inputs={"attention_mask": mask}))
    batch.add([plain, other])
    ids, _, _ = written(batch)
    assert ids == {"plain": alone(model, plain), "masked": alone(model, plain)}
    assert max(map(max, ids.values())) < VOCABULARY


def test_two_batches_at_once_have_separate_rows(model, engine):
    one, other = engine.continuous(2), engine.continuous(2)
    requests = [make_request(model, str(n), 6, n, 4) for n in range(2)]
    one.add(requests[:1])
    other.add(requests[1:])
    ids = defaultdict(list)
    while one.unfinished or other.unfinished:
        for token in (*one.step(), *other.step()):
            ids[token.request_id].append(token.token_id)
    assert ids == {request.request_id: alone(model, request) for request in requests}
    captured = len(engine._slots)
    one.close()
    third = engine.continuous(2)
    third.add(requests[:1])
    assert written(third)[0] == {"0": ids["0"]}
    assert len(engine._slots) == captured, "memory that is free was not taken again"
    other.close()
    third.close()


@pytest.mark.parametrize("ended", [True, False])
def test_kv_caches_of_finished_requests_are_released(model, engine, ended):
    """Slots stay with the engine; the KV caches that they held would be taken for free memory."""
    batch = engine.continuous(2)
    batch.add([make_request(model, str(n), 5, n, 3) for n in range(2)])
    batch.step()
    buffers = [weakref.ref(row.entry.cache.buffer) for row in batch._running.values()]
    while ended and batch.unfinished:
        batch.step()
    assert not ended or not batch._slots._assigned
    batch.close()
    gc.collect()
    assert buffers
    assert {buffer() for buffer in buffers} == {None}


def test_a_closed_engine_forgets_its_requests(model, tmp_path):
    engine = GraphedEngine(model, tuning=tmp_path)
    batch = engine.continuous()
    batch.add([make_request(model, "a", 5, 1, 4)])
    batch.step()
    engine.close()
    assert batch.unfinished == 0
    batch.close()


# The interpreter takes the maximum of nothing but NaN through numpy.
@pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")
@pytest.mark.parametrize("sampling", [FREE, replace(FREE, temperature=1.5, seed=2)], ids=["greedy", "drawn"])
def test_a_request_of_nan_fails_alone(model, batch, sampling):
    """Its neighbours in the pass and in the step, and the next owner of its KV cache, get their tokens."""

    def of_nan(request):
        embeds = request.prompt.inputs_embeds.clone()
        embeds[:, 2] = float("nan")
        return replace(request, prompt=replace(request.prompt, inputs_embeds=embeds))

    good = [make_request(model, str(seed), 9, seed, 3, sampling) for seed in range(3)]
    bad = of_nan(make_request(model, "bad", 9, 5, 3, sampling))
    later = make_request(model, "later", 9, 6, 3, sampling)
    batch.add([good[0], bad, good[1], good[2]])
    ids, errors = defaultdict(list), {}
    while batch.unfinished:
        for output in batch.step():
            assert output.request_id not in errors
            if output.error is None:
                ids[output.request_id].append(output.token_id)
            else:
                errors[output.request_id] = output
                batch.add([later])
    assert errors.keys() == {"bad"}
    assert (errors["bad"].token_id, errors["bad"].error.stage) == (-1, "prefill")
    assert ids == {request.request_id: alone(model, request) for request in (*good, later)}


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")
def test_a_request_whose_later_logits_are_nan_fails_alone(model, batch):
    good, bad = make_request(model, "good", 9, 0, 5), make_request(model, "bad", 9, 1, 5)
    tokens = {each.request_id: alone(model, each) for each in (good, bad)}
    second = tokens["bad"][1]
    assert second not in {*tokens["good"], tokens["bad"][0]}
    weight = model.embed.weight
    before = weight.detach()[second].clone()
    batch.add([good, bad])
    weight.data[second] = float("nan")
    try:
        outputs = []
        while batch.unfinished:
            outputs += batch.step()
    finally:
        weight.data[second] = before
    assert [o.token_id for o in outputs if o.request_id == "good"] == tokens["good"]
    *sound, last = [o for o in outputs if o.request_id == "bad"]
    assert [o.token_id for o in sound] == tokens["bad"][:2]
    assert (last.token_id, last.finished, last.error.stage) == (-1, None, "decode")


def test_features_that_are_not_finite_fail_their_request(model, batch):
    def refuse():
        raise NonFiniteError("encode", "features", found="NaN")

    good = make_request(model, "good", 9, 0, 2)
    batch.add([good, replace(make_request(model, "bad", 9, 1, 2), require_inputs=refuse)])
    outputs = []
    while batch.unfinished:
        outputs += batch.step()
    assert [o.error.stage for o in outputs if o.request_id == "bad"] == ["encode"]
    assert [o.token_id for o in outputs if o.request_id == "good"] == alone(model, good)
