"""Engine ``vllm`` over a fake of vLLM: its arguments, its requests, and the use of its output.

The fake computes on weights of its own, so that tokens are right only if all weights were copied to it.
``tests/cuda/test_vllm.py`` has vLLM itself.
"""

from __future__ import annotations

import json
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel, Qwen2VLTextConfig, Qwen2VLTextModel

from tests.engines.graphed.small import HIDDEN, KINDS, SIZES, VOCABULARY, language, prompt
from tests.engines.vllm import fake
from unfuse.engine_choice import pick_engine
from unfuse.engines.batching import Request
from unfuse.engines.eager import EagerEngine
from unfuse.engines.language_model import LanguageModel
from unfuse.engines.unsupported import Unsupported
from unfuse.engines.vllm.builder import memory_arguments
from unfuse.engines.vllm.engine import VllmEngine
from unfuse.engines.vllm.weights import text_config, text_weights
from unfuse.errors import DeviceError, MissingPackageError, NonFiniteError
from unfuse.loading import check_engine, load
from unfuse.stages import Prompt, Sampling

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the stand-in for vLLM computes on the CPU")
FREE = Sampling(ignore_eos=True)
DRAWN = Sampling(temperature=0.8, top_p=0.9, seed=5)


@pytest.fixture(scope="module", autouse=True)
def vllm():
    with pytest.MonkeyPatch.context() as patch:
        fake.install(patch)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(params=[*KINDS, "tied"])
def served(request, folder):
    """A model, and the engine on it."""
    model = language("llama", tied=True) if request.param == "tied" else language(request.param)
    engine = VllmEngine(model, cache=folder, capacity=4)
    yield model, engine
    engine.close()


@pytest.fixture(scope="module")
def model():
    return language()


@pytest.fixture
def engine(model, folder):
    made = VllmEngine(model, cache=folder, capacity=4)
    yield made
    made.close()


def alone(engine, prompt, n=12, sampling=FREE, **more):
    return list(engine.decode(engine.prefill(prompt, sampling, **more), n))


def written(batch, late=()):
    ids, ends, reused = defaultdict(list), {}, {}
    late = list(late)
    while batch.unfinished or late:
        for token in batch.step():
            assert token.request_id not in ends
            ids[token.request_id].append(token.token_id)
            reused[token.request_id] = token.reused_prefix_tokens
            if token.finished:
                ends[token.request_id] = token.finished
        batch.add(late[:1])
        late = late[1:]
    assert set(ids) == set(ends)
    return dict(ids), ends, reused


def make_request(name, prompt, n=6, sampling=FREE, **more):
    return Request(request_id=name, prompt=prompt, max_new_tokens=n, sampling=sampling, **more)


# What it computes


@pytest.mark.parametrize("sampling", [Sampling(), FREE], ids=["up to an end", "a number"])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 40])
def test_same_tokens_and_logits_as_the_models_own_forward(served, length, sampling):
    model, engine = served
    eager, given = EagerEngine(model), prompt(model, length, seed=length)
    mine, own = engine.prefill(given, sampling), eager.prefill(given, sampling)
    assert (mine.token_id, mine.prompt_tokens, mine.reused_prefix_tokens) == (own.token_id, length, 0)
    torch.testing.assert_close(mine.logits, own.logits, rtol=1e-4, atol=1e-4)
    assert mine.logits.shape == (VOCABULARY,)
    for n in (1, 2, 24):
        assert list(engine.decode(mine, n)) == list(eager.decode(own, n))


def test_scores_are_logits_after_forced_tokens_the_ends_among_them(served):
    model, engine = served
    given, forced = prompt(model, 21), [1, 7, 1, 3, 9]
    mine = engine.score(engine.prefill(given, FREE), forced)
    own = EagerEngine(model).score(EagerEngine(model).prefill(given, FREE), forced)
    torch.testing.assert_close(mine, own, rtol=1e-4, atol=1e-4)
    assert engine.score(engine.prefill(given, FREE), [4]).shape == (1, VOCABULARY)


def test_a_prompt_may_be_decoded_again_and_left_in_the_middle(model, engine):
    prefilled = engine.prefill(prompt(model, 30), FREE)
    whole = list(engine.decode(prefilled, 10))
    half = engine.decode(prefilled, 10)
    assert [next(half) for _ in range(4)] == whole[:4]
    half.close()
    assert not fake.built[-1].running
    engine.score(prefilled, [3, 4, 5])
    assert list(engine.decode(prefilled, 10)) == whole


def test_an_answer_ends_where_the_models_positions_do(model, engine):
    length = SIZES["max_position_embeddings"] - 3
    given = prompt(model, length)
    assert len(alone(engine, given, 9)) == 3
    ids, ends, _ = written(filled(engine.continuous(), [make_request("a", given, 9)]))
    assert (len(ids["a"]), ends["a"]) == (3, "length")


def filled(batch, requests):
    batch.add(requests)
    return batch


def test_drawn_tokens_are_repeatable_and_noted_as_vllms(model, folder):
    engine = VllmEngine(model, cache=folder)
    given = prompt(model, 20)
    assert not any("drawn" in note for note in engine.notes)
    first = alone(engine, given, 20, DRAWN)
    assert alone(engine, given, 20, DRAWN) == first
    assert alone(engine, given, 20, replace(DRAWN, seed=6)) != first
    assert any("drawn by vLLM" in note for note in engine.notes)
    engine.close()


def test_later_tokens_use_other_noise_than_the_first(folder):
    model = language()
    model.head.weight.data *= 1e-3  # what is drawn is then a matter of noise alone
    engine = VllmEngine(model, cache=folder)
    drawn = [alone(engine, prompt(model, 5), 2, Sampling(temperature=1.0, ignore_eos=True, seed=n)) for n in range(4)]
    engine.close()
    assert [first for first, second in drawn if first != second]


@pytest.mark.parametrize("temperature", [0.001, 2.5])
def test_unsupported_temperatures_run_on_eager(model, engine, temperature):
    drawn = Sampling(temperature=temperature, seed=2)
    given = prompt(model, 9)
    assert alone(engine, given, 9, drawn) == alone(EagerEngine(model), given, 9, drawn)
    ids, _, _ = written(filled(engine.continuous(), [make_request("a", given, 9, drawn)]))
    assert ids["a"] == alone(EagerEngine(model), given, 9, drawn)
    assert any("temperatures below 0.01 and above 2.0 are answered by engine eager" in note for note in engine.notes)


# What is taken over


def test_prefixes_are_not_reused_without_reuse(model, engine):
    given = prompt(model, 50, seed=9)
    for reuse, expected in ((False, 0), (False, 0), (True, 0), (True, 48), (False, 0)):
        assert engine.prefill(given, FREE, reuse=reuse).reused_prefix_tokens == expected
    more = prompt(model, 9)
    longer = replace(
        given,
        inputs_embeds=torch.cat([given.inputs_embeds, more.inputs_embeds], dim=1),
        token_keys=given.token_keys + more.token_keys,
    )
    assert engine.prefill(longer, FREE, reuse=True).reused_prefix_tokens == 48
    other = Prompt(inputs_embeds=given.inputs_embeds * 1.001)
    assert engine.prefill(other, FREE, reuse=True).reused_prefix_tokens == 0
    assert alone(engine, longer, reuse=True) == alone(EagerEngine(model), longer)


def test_embeddings_are_hashed_without_token_keys(model, engine):
    vllm = fake.built[-1]
    vllm.hashed_rows = 0
    prompts = [prompt(model, 40, seed=n) for n in range(4)]
    own = [alone(EagerEngine(model), each) for each in prompts]
    prefilled = [engine.prefill(each, FREE) for each in prompts]
    assert [list(engine.decode(each, 12)) for each in prefilled] == own
    for reuse in (False, True):
        # What follows the prompt fills a block: with another token it is another prompt.
        full = engine.prefill(prompt(model, 31), FREE, reuse=reuse)
        for first in (3, 4):
            forced = [first, 5, 6]
            theirs = EagerEngine(model).score(EagerEngine(model).prefill(prompt(model, 31), FREE), forced)
            torch.testing.assert_close(engine.score(full, forced), theirs, rtol=1e-4, atol=1e-4)
    assert vllm.hashed_rows == 0
    engine.prefill(prompt(model, 40, keys=False), FREE, reuse=True)
    assert vllm.hashed_rows == 32


def test_keys_of_features_are_theirs_alone(model, engine):
    scene = prompt(model, 40, seed=3)
    marked = replace(scene, token_keys=(*scene.token_keys[:8], *range(-1, -25, -1), *scene.token_keys[32:]))
    for digest, reused in (("a", 0), ("a", 32), ("b", 0), (None, 0)):
        digested = replace(marked, features_digest=digest)
        assert engine.prefill(digested, FREE, reuse=True).reused_prefix_tokens == reused
    further = replace(
        marked,
        features_digest="a",
        inputs_embeds=torch.cat([scene.inputs_embeds[:, :32], prompt(model, 8, seed=5).inputs_embeds], dim=1),
        token_keys=(*marked.token_keys[:32], *prompt(model, 8, seed=5).token_keys),
    )
    assert engine.prefill(further, FREE, reuse=True).reused_prefix_tokens == 32
    assert alone(engine, further, reuse=True) == alone(EagerEngine(model), further)


def test_a_vllm_with_other_private_names_hashes_embeddings(model, folder, monkeypatch):
    whole = fake.LLMEngine.__init__

    def without(self, *args, **kwargs):
        whole(self, *args, **kwargs)
        self.engine_core = SimpleNamespace(shutdown=self._shutdown)

    monkeypatch.setattr(fake.LLMEngine, "__init__", without)
    engine = VllmEngine(model, cache=folder)
    assert alone(engine, prompt(model, 40)) == alone(EagerEngine(model), prompt(model, 40))
    assert fake.built[-1].hashed_rows > 0
    engine.close()


def test_a_batch_reuses_prefixes_that_requests_allow(model, engine):
    given = prompt(model, 40, seed=11)
    batch = engine.continuous(1)
    batch.add([make_request("a", given, reuse=True), make_request("b", given, reuse=True), make_request("c", given)])
    ids, _, reused = written(batch)
    assert reused == {"a": 0, "b": 32, "c": 0}
    assert ids["a"] == ids["b"] == ids["c"] == alone(EagerEngine(model), given, 6)


# Many together


@pytest.mark.parametrize("capacity", [None, 1, 3])
@pytest.mark.parametrize("sampling", [Sampling(), FREE], ids=["up to an end", "a number"])
def test_requests_that_join_and_leave_get_the_tokens_of_a_single_request(model, engine, capacity, sampling):
    requests = [make_request(str(i), prompt(model, 5 + 9 * i, seed=i), 1 + 4 * i, sampling) for i in range(6)]
    batch = filled(engine.continuous(capacity), requests[:4])
    assert batch.capacity == (capacity or 4)
    ids, ends, reused = written(batch, requests[4:])
    for request in requests:
        own = alone(EagerEngine(model), request.prompt, request.max_new_tokens, sampling)
        assert ids[request.request_id] == own
        assert ends[request.request_id] == ("eos" if own[-1] == 1 else "length")
    assert set(reused.values()) == {0}
    assert batch.step() == []
    assert batch.busy_s["prefill"] > 0
    assert batch.busy_s["decode"] > 0


def test_capacity_limits_the_running_requests_and_one_joins_per_step(model, folder):
    engine = VllmEngine(model, cache=folder, capacity=4)
    vllm = fake.built[-1]
    vllm.most_running = 0
    written(filled(engine.continuous(2), [make_request(str(i), prompt(model, 9)) for i in range(5)]))
    assert vllm.most_running == 2
    vllm.most_running = 0
    batch = filled(engine.continuous(interleave=True), [make_request(str(i), prompt(model, 9)) for i in range(3)])
    batch.step()
    assert vllm.most_running == 1
    written(batch)
    assert vllm.most_running > 1
    engine.close()


def test_an_aborted_request_returns_no_more_tokens(model, engine):
    batch = filled(engine.continuous(2), [make_request(str(i), prompt(model, 9)) for i in range(4)])
    batch.step()
    for name in ("0", "3", "nobody", "0"):
        batch.abort(name)
    assert batch.unfinished == 2
    assert set(written(batch)[0]) == {"1", "2"}


def test_close_aborts_only_its_own_requests(model, engine):
    one, other = engine.continuous(), engine.continuous()
    one.add([make_request("a", prompt(model, 9))])
    other.add([make_request("a", prompt(model, 12))])
    one.step()
    one.close()
    one.close()
    assert (one.unfinished, one.step()) == (0, [])
    assert written(other)[0]["a"] == alone(EagerEngine(model), prompt(model, 12), 6)


def test_prefill_beside_a_batch_disturbs_neither(model, engine):
    requests = [make_request(str(i), prompt(model, 20 + i, seed=i), 9) for i in range(3)]
    batch = filled(engine.continuous(), requests)
    batch.step()
    between = prompt(model, 33, seed=33)
    mine, own = engine.prefill(between, FREE), EagerEngine(model).prefill(between, FREE)
    torch.testing.assert_close(mine.logits, own.logits, rtol=1e-4, atol=1e-4)
    assert list(engine.decode(mine, 9)) == list(EagerEngine(model).decode(own, 9))
    ids, _, _ = written(batch)
    for request in requests:
        # The first step's token was read above.
        assert ids[request.request_id] == alone(EagerEngine(model), request.prompt, 9)[1:]


def test_rows_of_a_padded_batch_are_answered_as_each_alone(model, engine):
    prompts = [prompt(model, length, seed=length) for length in (7, 20, 13)]
    rows = [p.inputs_embeds[0] for p in prompts]
    padded = torch.stack([nn.functional.pad(row, (0, 0, 20 - len(row), 0)) for row in rows])
    mask = torch.stack([(torch.arange(20) >= 20 - len(row)).long() for row in rows])
    batch = Prompt(inputs_embeds=padded, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
    found = engine.answer_batch(batch, Sampling(), 12)
    assert found == [tuple(alone(EagerEngine(model), p, 12, Sampling())) for p in prompts]


# What it does not take


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"position_ids": torch.arange(12)[None] + 3}, "positions do not count from 0"),
        ({"position_ids": torch.arange(12).expand(3, 1, 12)}, "positions do not count from 0"),
        ({"scene_inputs": {"visual": None}}, "prompts with visual"),
        ({"decoder_inputs": {"attention_mask": torch.ones(1, 12, dtype=torch.long)}}, "prompts with attention_mask"),
    ],
)
def test_unsupported_prompts_are_answered_by_eager_with_a_note(model, folder, more, reason, monkeypatch):
    engine = VllmEngine(model, cache=folder)
    given = replace(prompt(model, 12), **more)
    if "scene_inputs" in more or more.get("position_ids", torch.empty(0)).dim() == 3:
        # A LLaMA does not know what these mean: it is enough that they go to the other engine.
        with monkeypatch.context() as patch:
            patch.setattr(EagerEngine, "prefill", lambda self, *_, **__: "theirs")
            assert engine.prefill(given, FREE) == "theirs"
    else:
        assert alone(engine, given) == alone(EagerEngine(model), given)
        prefilled = engine.prefill(given, FREE)
        own = EagerEngine(model).score(EagerEngine(model).prefill(given, FREE), [3, 4])
        torch.testing.assert_close(engine.score(prefilled, [3, 4]), own)
        plain = make_request("b", prompt(model, 12, seed=2))
        ids, _, _ = written(filled(engine.continuous(), [make_request("a", given), plain]))
        assert ids["a"] == alone(EagerEngine(model), given, 6)
        assert ids["b"] == alone(EagerEngine(model), plain.prompt, 6)
    assert [note for note in engine.notes if reason in note]
    engine.close()


def test_a_prompt_over_the_context_length_is_answered_by_eager(model, engine):
    given = prompt(model, SIZES["max_position_embeddings"])
    assert alone(engine, given, 3) == alone(EagerEngine(model), given, 3)
    assert any("256 positions and more are answered by engine eager" in note for note in engine.notes)


def test_positions_that_count_from_0_are_served(model, engine):
    before = engine.notes
    given = replace(prompt(model, 12), position_ids=torch.arange(12)[None])
    assert alone(engine, given) == alone(EagerEngine(model), given)
    assert engine.notes == before


def with_bias(model):
    model.head.bias = nn.Parameter(torch.ones(VOCABULARY))


def with_more_tokens(model):
    return replace(model, head=nn.Linear(HIDDEN, VOCABULARY + 1, bias=False))


def with_an_adapter(model):
    projection = model.decoder.layers[0].self_attn.q_proj
    projection.lora = nn.Linear(HIDDEN, 2)


def with_one_bias(model):
    model.decoder.layers[0].self_attn.q_proj.bias = nn.Parameter(torch.ones(HIDDEN))


def with_two_dtypes(model):
    model.decoder.norm.half()


def quantized(model):
    model.decoder.config.quantization_config = {"bits": 4}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_bias, "the head has a bias"),
        (with_more_tokens, "knows 41 tokens, the embedding 40"),
        (with_two_dtypes, "several kinds"),
        (quantized, "quantized"),
        (with_an_adapter, "no parameter for model.layers.0.self_attn.q_proj.lora.weight"),
        (with_one_bias, "no parameter for model.layers.0.self_attn.q_proj.bias"),
    ],
)
def test_models_of_another_kind_are_refused(change, reason, folder):
    model = language()
    model = change(model) or model
    with pytest.raises(Unsupported, match=reason):
        VllmEngine(model, cache=folder)


def test_positions_of_several_axes_are_refused(folder):
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    decoder = Qwen2VLTextModel(Qwen2VLTextConfig(**SIZES, num_key_value_heads=2, rope_parameters=rope))
    model = LanguageModel(decoder, nn.Linear(HIDDEN, VOCABULARY, bias=False), decoder.embed_tokens, (1,))
    with pytest.raises(Unsupported, match="none of llama, mistral, qwen2, qwen3"):
        VllmEngine(model, cache=folder)


def test_weights_that_vllm_stores_in_another_form_are_unsupported(folder, monkeypatch):
    def load_weights(self, weights):
        own(self, ((name, weight * 2 if "k_proj" in name else weight) for name, weight in weights))

    own = fake.Model.load_weights
    monkeypatch.setattr(fake.Model, "load_weights", load_weights)
    model = language()
    before = model.decoder.layers[0].self_attn.q_proj.weight.data_ptr()
    with pytest.raises(Unsupported, match=r"vLLM stores model.layers.0.self_attn.k_proj.weight in another form"):
        VllmEngine(model, cache=folder)
    assert model.decoder.layers[0].self_attn.q_proj.weight.data_ptr() == before


def test_a_vllm_that_computes_something_else_is_refused_and_closed(folder, monkeypatch):
    own = fake.Model.logits
    monkeypatch.setattr(fake.Model, "logits", lambda self, embeds, cache: own(self, embeds * 1.5, cache))
    with pytest.raises(Unsupported, match="from the model's own"):
        VllmEngine(language(), cache=folder)
    assert fake.built[-1].shut


# What is handed over


def test_weights_are_stored_once_and_the_models_own_forward_works(folder):
    model = language("biases")
    given = prompt(model, 9)
    before = alone(EagerEngine(model), given)
    engine = VllmEngine(model, cache=folder)
    parameters = dict(fake.built[-1].model.named_parameters())
    whole = parameters["model.layers.1.self_attn.qkv_proj.bias"]
    inside = range(whole.data_ptr(), whole.data_ptr() + whole.numel() * whole.element_size())
    assert model.decoder.layers[1].self_attn.v_proj.bias.data_ptr() in inside
    assert model.head.weight.data_ptr() == parameters["lm_head.weight"].data_ptr()
    assert model.embed.weight.data_ptr() == parameters["model.embed_tokens.weight"].data_ptr()
    assert alone(EagerEngine(model), given) == before
    engine.close()
    engine.close()
    assert fake.built[-1].shut
    assert alone(EagerEngine(model), given) == before


def test_only_the_shape_of_the_language_side_is_written(tmp_path):
    class Fused(LlamaConfig):
        model_type = "something else"
        vision_side: int | None = None

    config = Fused(**SIZES, num_key_value_heads=4, vision_side=7, eos_token_id=2)
    decoder = LlamaModel(config)
    decoder.tower = nn.Linear(3, 3)
    model = LanguageModel(decoder, nn.Linear(HIDDEN, VOCABULARY, bias=False), decoder.embed_tokens, (1,))
    engine = VllmEngine(model, cache=tmp_path, enforce_eager=True)
    (file,) = tmp_path.rglob("config.json")
    shape = json.loads(file.read_text())
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]
    assert (shape["model_type"], shape["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert "vision_side" not in shape
    assert shape["eos_token_id"] is None
    assert "tower" not in " ".join(dict(fake.built[-1].model.named_parameters()))
    arguments = fake.built[-1].args
    assert (arguments.enforce_eager, arguments.enable_prefix_caching, arguments.max_num_seqs) == (True, True, 128)
    engine.close()


# Whether it is chosen


def adapter(model, device="cuda"):
    torch_device = SimpleNamespace(type=device)
    return SimpleNamespace(unsplittable=None, device=torch_device, language=model, vision_modules=dict)


def test_one_at_a_time_in_a_process(model, engine, folder):
    with pytest.raises(Unsupported, match="runs another model in this process"):
        VllmEngine(language(), cache=folder)
    engine.close()
    VllmEngine(model, cache=folder).close()


def test_it_is_chosen_by_name(monkeypatch, tmp_path):
    monkeypatch.setenv("UNFUSE_CACHE", str(tmp_path))
    engine, notes = pick_engine("vllm", adapter(language()))
    assert (engine.name, notes) == ("vllm", ())
    assert engine.notes == ("vLLM 0.24.0+fake",)
    engine.close()
    assert list((tmp_path / "vllm").rglob("config.json"))


def test_without_a_gpu_eager_takes_its_place_and_says_why():
    check_engine("vllm")
    with load("demo", device="cpu", engine="vllm") as model:
        assert model.engine.name == "eager"
        assert "engine eager instead of vllm: it needs a CUDA device, and the model is on cpu" in model.notes


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("CUDA out of memory\nand more"), "it could not be built (RuntimeError: CUDA out of memory)"),
        (ImportError("vllm._C: undefined symbol"), "it could not be built (ImportError: vllm._C: undefined symbol)"),
        (ValueError(), "it could not be built (ValueError: )"),
    ],
)
def test_a_vllm_that_cannot_be_built_leaves_the_model_to_eager(error, reason, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise error

    monkeypatch.setenv("UNFUSE_CACHE", str(tmp_path))
    monkeypatch.setattr(fake.LLMEngine, "__init__", fail)
    model = language()
    engine, notes = pick_engine("vllm", adapter(model))
    assert notes == (f"engine eager instead of vllm: {reason}",)
    assert engine.name == "eager"
    assert len(alone(engine, prompt(model, 9))) == 12


def test_a_model_that_vllm_does_not_know_runs_on_eager():
    model = language()
    quantized(model)
    engine, notes = pick_engine("vllm", adapter(model))
    assert (engine.name, notes) == ("eager", ("engine eager instead of vllm: its weights are quantized",))


def test_without_the_package_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("unfuse.loading.importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r'no package vllm.*pip install "unfuse\[vllm\]"'):
        load("demo", engine="vllm")
    with pytest.raises(DeviceError, match="auto, eager, graphed, vllm"):
        check_engine("warp")


@pytest.mark.parametrize(
    ("free", "positions", "measured"),
    [(70, 64, False), (70, 1600, False), (70, 1800, True), (70, 4096, True), (2, 4096, True)],
)
def test_a_small_cache_is_not_profiled(monkeypatch, model, free, positions, measured):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * 2**30, 80 * 2**30))
    shape = {**text_config(model), "max_position_embeddings": positions, "num_hidden_layers": 320}
    weights = text_weights(model)
    given = memory_arguments(shape, weights, torch.device("cuda"), 64)
    away = {"all": torch.empty(free * 2**28, device="meta")}
    assert memory_arguments(shape, weights | away, torch.device("cuda"), 64)["kv_cache_memory_bytes"] is None
    heads = shape["num_key_value_heads"] * shape["head_dim"]
    needed = 64 * positions * 2 * 320 * heads * 4
    assert (given["kv_cache_memory_bytes"] is None) == measured
    assert measured or needed <= given["kv_cache_memory_bytes"] <= free * 2**30 / 8
    assert 0 < given["gpu_memory_utilization"] * 80 < free


# Logits that are not finite


@pytest.fixture
def nan_after(engine):
    """While the body runs, the logits after a token are NaN."""

    @contextmanager
    def spoilt(token):
        embedding = engine._engine.model.embedding.data
        before = embedding[token].clone()
        embedding[token] = float("nan")
        try:
            yield
        finally:
            embedding[token] = before

    return spoilt


def test_logits_of_the_prompt_that_are_not_finite(engine, model):
    given = prompt(model, 20)
    bad = replace(given, inputs_embeds=torch.full_like(given.inputs_embeds, float("nan")))
    with pytest.raises(NonFiniteError, match="^prefill: logits are not finite: found NaN in 40 of 40"):
        engine.prefill(bad, FREE)
    batch = engine.continuous()
    batch.add([make_request("bad", bad), make_request("good", given)])
    outputs = []
    while batch.unfinished:
        outputs += batch.step()
    (failure,) = [output for output in outputs if output.error is not None]
    assert (failure.request_id, failure.token_id, failure.error.stage) == ("bad", -1, "prefill")
    assert [o.token_id for o in outputs if o.request_id == "good"] == alone(engine, given, 6)


@pytest.mark.parametrize("sampling", [FREE, Sampling(), replace(DRAWN, ignore_eos=True)], ids=str)
def test_logits_of_a_later_token_that_are_not_finite(engine, model, nan_after, sampling):
    given = prompt(model, 20)
    tokens = alone(engine, given, 6, sampling)
    prefilled = engine.prefill(given, sampling)
    assert tokens[0] != tokens[1], "the second is to fail"
    with nan_after(tokens[1]):
        seen = engine.decode(prefilled, 6)
        assert [next(seen), next(seen)] == tokens[:2]
        with pytest.raises(NonFiniteError, match="^decode: logits are not finite"):
            list(seen)
        assert not engine._engine.has_unfinished_requests() or not engine._engine.running
    with nan_after(tokens[0]):
        batch = engine.continuous()
        other = make_request("other", prompt(model, 9, seed=4), 1)
        batch.add([make_request("bad", given, sampling=sampling), other])
        outputs = []
        while batch.unfinished:
            outputs += batch.step()
        mine = [(o.token_id, o.error) for o in outputs if o.request_id == "bad"]
        assert mine[0][0] >= 0
        assert (mine[-1][0], mine[-1][1].stage) == (-1, "decode")
        assert [o.error for o in outputs if o.request_id == "other"] == [None]
    assert alone(engine, given, 6, sampling) == tokens


def test_features_that_are_not_finite_fail_their_request(engine, model):
    def refuse():
        raise NonFiniteError("encode", "features", found="NaN")

    batch = engine.continuous()
    given = prompt(model, 20)
    batch.add([make_request("bad", given, require_inputs=refuse), make_request("good", given)])
    outputs = []
    while batch.unfinished:
        outputs += batch.step()
    assert [o.error.stage for o in outputs if o.request_id == "bad"] == ["encode"]
    assert [o.token_id for o in outputs if o.request_id == "good"] == alone(engine, given, 6)
