"""The engine against ``eager`` on small models of every kind that it serves."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import (
    MistralConfig,
    MistralModel,
    Qwen2VLTextConfig,
    Qwen2VLTextModel,
)

from tests.engines.graphed.small import DEVICE, HIDDEN, KINDS, SIZES, VOCABULARY, language, prompt
from unfuse.engine_choice import pick_engine
from unfuse.engines.batching import Request
from unfuse.engines.eager import EagerEngine
from unfuse.engines.graphed import decoding
from unfuse.engines.graphed import engine as engine_module
from unfuse.engines.graphed.engine import GraphedEngine
from unfuse.engines.graphed.llama import find_llama
from unfuse.engines.language_model import LanguageModel
from unfuse.engines.unsupported import Unsupported
from unfuse.measure.products import counting_all_threads, linear
from unfuse.stages import Prompt, Sampling
from unfuse.verification.speculation import GuessedDrafts

pytestmark = pytest.mark.usefixtures("few_programs")


@pytest.fixture(scope="module")
def model():
    return language()


@pytest.fixture(scope="module")
def engine(model, tmp_path_factory):
    return GraphedEngine(model, tuning=tmp_path_factory.mktemp("tuning"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_writes_what_eager_writes(kind, tmp_path):
    model = language(kind)
    eager, engine = EagerEngine(model), GraphedEngine(model, tuning=tmp_path)
    for length in (3, 70):
        given = prompt(model, length)
        theirs, ours = eager.prefill(given, Sampling()), engine.prefill(given, Sampling())
        tokens = list(eager.decode(theirs, 2))
        assert list(engine.decode(ours, 2)) == tokens
        torch.testing.assert_close(engine.score(ours, tokens), eager.score(theirs, tokens), rtol=1e-4, atol=1e-4)


def test_a_first_call_in_inference_mode_leaves_the_engine_usable(tmp_path):
    model, sampling = language(), Sampling()
    with torch.inference_mode():
        engine = GraphedEngine(model, tuning=tmp_path)
        words = engine.decode(engine.prefill(prompt(model, 5), sampling, reuse=True), 4)
        first = [next(words), next(words)]
    written = [*first, *words]
    assert torch.is_grad_enabled()
    assert list(engine.decode(engine.prefill(prompt(model, 5), sampling, reuse=True), 4)) == written
    # A prompt may also be an inference tensor of the caller.
    with torch.inference_mode():
        given = prompt(model, 5)
    assert list(engine.decode(engine.prefill(given, sampling), 4)) == written


def test_weights_are_stored_once(tmp_path):
    model = language("biases")
    before = {name: p.clone() for name, p in model.decoder.named_parameters()}
    llama = find_llama(model)
    for name, parameter in model.decoder.named_parameters():
        assert torch.equal(parameter, before[name])
    attention = model.decoder.layers[0].self_attn
    joined = llama.layers[0].qkv
    assert attention.q_proj.weight.data_ptr() == joined.weight.data_ptr()
    assert attention.v_proj.weight.untyped_storage().data_ptr() == joined.weight.untyped_storage().data_ptr()
    assert attention.v_proj.bias.untyped_storage().data_ptr() == joined.bias.untyped_storage().data_ptr()
    again = find_llama(model)
    assert again.layers[1].gate_up.weight.data_ptr() == llama.layers[1].gate_up.weight.data_ptr()


def test_tied_embeddings(tmp_path):
    model = language(tied=True)
    eager, engine = EagerEngine(model), GraphedEngine(model, tuning=tmp_path)
    given = prompt(model, 5)
    wanted = list(eager.decode(eager.prefill(given, Sampling()), 4))
    assert list(engine.decode(engine.prefill(given, Sampling()), 4)) == wanted


def test_prefix_is_reused_and_changes_nothing(model, engine):
    engine.close()
    first, second = prompt(model, 30), prompt(model, 30)
    other = [2 + first.token_keys[25] % 30, 4, 5]
    ids = torch.tensor(other, device=DEVICE)
    longer = Prompt(
        inputs_embeds=torch.cat([second.inputs_embeds[:, :25], model.embed(ids)[None].detach()], dim=1),
        token_keys=(*second.token_keys[:25], *other),
    )
    uncached = engine.prefill(longer, Sampling())
    wanted = list(engine.decode(uncached, 4))
    list(engine.decode(engine.prefill(first, Sampling(), reuse=True), 4))
    reused = engine.prefill(longer, Sampling(), reuse=True)
    assert uncached.reused_prefix_tokens == 0
    assert reused.reused_prefix_tokens == 25
    assert list(engine.decode(reused, 4)) == wanted
    assert list(engine.decode(reused, 4)) == wanted
    again = engine.prefill(longer, Sampling(), reuse=True)
    assert again.reused_prefix_tokens == 27


@pytest.mark.parametrize("more", [1, 5, 20, 70])
def test_text_after_the_cached_prefix_is_looked_up_on_the_device(model, engine, more):
    """The lookup gives the result of equal embeddings; the prompt's own call embeds longer text."""
    engine.close()
    first = prompt(model, 30)
    ids = [2 + (7 * at) % 30 for at in range(more)]
    keys = (*first.token_keys[:25], *ids)
    embeds = model.embed(torch.tensor(keys, device=DEVICE))[None].detach()
    made = []

    def make():
        made.append(True)
        return embeds

    engine.prefill(first, Sampling(), reuse=True)
    unmade = engine.prefill(Prompt(inputs_embeds=make, token_keys=keys), Sampling(ignore_eos=True), reuse=True)
    wanted = engine.prefill(Prompt(inputs_embeds=embeds), Sampling(ignore_eos=True))
    assert (bool(made), unmade.reused_prefix_tokens, unmade.prompt_tokens) == (more > 64, 25, 25 + more)
    torch.testing.assert_close(unmade.logits, wanted.logits, rtol=1e-4, atol=1e-4)
    assert list(engine.decode(unmade, 3)) == list(engine.decode(wanted, 3))


def test_features_after_the_cached_prefix_need_their_embeddings(model, engine):
    engine.close()
    first = prompt(model, 30)
    keys = (*first.token_keys[:25], -1, -2, 5)
    embeds = torch.cat([first.inputs_embeds[:, :25], torch.randn(1, 3, HIDDEN, device=DEVICE)], dim=1)
    engine.prefill(first, Sampling(), reuse=True)
    late = engine.prefill(Prompt(inputs_embeds=lambda: embeds, token_keys=keys), Sampling(), reuse=True)
    wanted = engine.prefill(Prompt(inputs_embeds=embeds), Sampling())
    torch.testing.assert_close(late.logits, wanted.logits, rtol=1e-4, atol=1e-4)


def test_sampling_is_eagers(model, engine):
    given = prompt(model, 12)
    sampling = Sampling(temperature=2.0, top_p=0.8, seed=5)
    theirs = EagerEngine(model)
    wanted = list(theirs.decode(theirs.prefill(given, sampling), 5))
    mine = engine.prefill(given, sampling)
    assert list(engine.decode(mine, 5)) == wanted
    assert list(engine.decode(mine, 5)) == wanted
    other = engine.prefill(given, Sampling(temperature=2.0, top_p=0.8, seed=6))
    assert list(engine.decode(other, 5)) != wanted


@pytest.mark.parametrize("sampling", [Sampling(ignore_eos=True), Sampling(temperature=2.0, ignore_eos=True)])
def test_answers_may_be_decoded_alternately(model, engine, sampling):
    """Two answers share one captured step, and each resumes at its own position."""
    prefilled = [engine.prefill(prompt(model, 9, seed), sampling) for seed in (1, 2)]
    alone = [list(engine.decode(one, 4)) for one in prefilled]
    writing = [engine.decode(one, 4) for one in prefilled]
    turns = [[next(one) for one in writing] for _ in range(4)]
    assert [list(tokens) for tokens in zip(*turns, strict=True)] == alone


def test_an_answer_may_outgrow_its_kv_cache(model, engine, monkeypatch):
    monkeypatch.setattr(engine_module, "_MAX_ANSWER", 1)
    monkeypatch.setattr(decoding, "_GROWTH", 1)
    given, sampling = prompt(model, 62), Sampling(ignore_eos=True)
    theirs = EagerEngine(model)
    wanted = list(theirs.decode(theirs.prefill(given, sampling), 4))
    monkeypatch.setattr(engine, "_answer_positions", 1)
    mine = engine.prefill(given, sampling)
    assert mine.state.cache.capacity == 64
    assert list(engine.decode(mine, 4)) == wanted
    assert mine.state.cache.capacity == 128
    assert list(engine.decode(mine, 4)) == wanted


def test_a_batch_is_each_alone(model, engine):
    rows = [prompt(model, length, seed=length) for length in (3, 9, 6)]
    longest = 9
    embeds = torch.cat(
        [nn.functional.pad(row.inputs_embeds, (0, 0, longest - row.inputs_embeds.shape[1], 0)) for row in rows]
    )
    mask = torch.stack([(torch.arange(longest) >= longest - row.inputs_embeds.shape[1]).long() for row in rows])
    mask = mask.to(DEVICE)
    padded = Prompt(inputs_embeds=embeds, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
    for sampling in (Sampling(), Sampling(temperature=1.5, seed=2)):
        together = engine.answer_batch(padded, sampling, 4)
        alone = [tuple(engine.decode(engine.prefill(row, sampling), 4)) for row in rows]
        assert together == alone
        assert together == EagerEngine(model).answer_batch(padded, sampling, 4)


def test_ends_where_the_model_does():
    model = language(ends=())
    eager = EagerEngine(model)
    given = prompt(model, 10)
    tokens = list(eager.decode(eager.prefill(given, Sampling()), 6))
    end = tokens[len(tokens) // 2]
    model = LanguageModel(model.decoder, model.head, model.embed, (end,))
    engine = GraphedEngine(model)
    at = tokens.index(end)
    assert list(engine.decode(engine.prefill(given, Sampling()), 6)) == tokens[: at + 1]
    fixed = list(engine.decode(engine.prefill(given, Sampling(ignore_eos=True)), 6))
    assert len(fixed) == 6
    assert end not in fixed


def test_closed_engine_starts_again(model, engine):
    given = prompt(model, 4)
    wanted = list(engine.decode(engine.prefill(given, Sampling()), 3))
    engine.close()
    assert list(engine.decode(engine.prefill(given, Sampling()), 3)) == wanted


def live_bytes():
    """Of all tensors that anything holds on to."""
    storages = {}
    for each in gc.get_objects():
        if type(each) in (torch.Tensor, nn.Parameter) and not each.is_meta:
            storage = each.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def test_a_closed_engine_holds_the_weights_only(tmp_path):
    """Not even until the collector of cycles comes; one that is dropped holds nothing either."""
    model, sampling = language(), Sampling()
    find_llama(model)
    gc.collect()
    before = live_bytes()
    gc.disable()
    try:
        engine = GraphedEngine(model, tuning=tmp_path)
        given = prompt(model, 30)
        list(engine.decode(engine.prefill(given, sampling, reuse=True), 3))
        list(engine.decode(engine.prefill(given, sampling, reuse=True), 3))
        engine.prefill(prompt(model, 70), sampling)
        batch = engine.continuous()
        for at in range(2):
            batch.add([Request(request_id=f"{at}", prompt=prompt(model, 40, at), max_new_tokens=3, sampling=sampling)])
        while batch.unfinished:
            batch.step()
        del given
        assert live_bytes() - before > 64 * 2**20
        engine.close()
        left = live_bytes() - before
        del batch
        again = engine.decode(engine.prefill(prompt(model, 5), sampling), 3)
        next(again)
        assert live_bytes() - before > 64 * 2**20
        del again, engine
        dropped = live_bytes() - before
    finally:
        gc.enable()
    # End tokens, angles and where weights are, the seed of what is drawn.
    assert left < 16 * 2**10, left
    assert dropped < 16 * 2**10, dropped


def test_answers_under_way_outlive_a_close(model, tmp_path):
    """They keep the captured step and its workspace. Two answers alternate on the step; a new answer captures again."""
    eager, engine = EagerEngine(model), GraphedEngine(model, tuning=tmp_path)
    sampling = Sampling(ignore_eos=True)
    prompts = [prompt(model, 5 + 4 * seed, seed=seed) for seed in range(3)]
    wanted = [list(eager.decode(eager.prefill(each, sampling), 8)) for each in prompts]
    prefilled = [engine.prefill(each, sampling) for each in prompts]
    answers = [engine.decode(each, 8) for each in prefilled]
    written = [[next(answers[0]), next(answers[0])], [next(answers[1])], []]
    workspace = weakref.ref(engine._runner.work)
    engine.close()
    for _ in range(4):
        for tokens, answer in zip(written, answers, strict=True):
            tokens.append(next(answer))
    assert workspace() is not None
    assert workspace() is not engine._runner.work
    for tokens, answer in zip(written, answers, strict=True):
        tokens += answer
    assert written == wanted
    del answers, answer
    assert workspace() is None


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_other_decoders_are_unsupported_with_a_reason():
    model = language()
    model.decoder.layers[1].mlp.down_proj = Doubled(48, HIDDEN, bias=False, device=DEVICE)
    with pytest.raises(Unsupported, match="Doubled"):
        GraphedEngine(model)
    model = language()
    model.decoder.layers[0].mlp.act_fn = nn.GELU()
    with pytest.raises(Unsupported, match="SiLU"):
        GraphedEngine(model)
    sliding = MistralModel(MistralConfig(**SIZES, sliding_window=8)).to(DEVICE)
    with pytest.raises(Unsupported, match="sliding"):
        find_llama(LanguageModel(sliding, model.head, sliding.embed_tokens, ()))


@pytest.mark.usefixtures("compared_in_full")
def test_a_decoder_with_other_logits_is_unsupported(monkeypatch):
    model = language()
    forward = type(model.decoder.layers[0]).forward
    monkeypatch.setattr(
        type(model.decoder.layers[0]), "forward", lambda self, x, *a, **k: 0.7 * forward(self, x, *a, **k)
    )
    with pytest.raises(Unsupported, match="from the model's own"):
        GraphedEngine(model)


@pytest.mark.usefixtures("compared_in_full")
def test_axes_in_another_order_are_found(monkeypatch):
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    decoder = Qwen2VLTextModel(Qwen2VLTextConfig(**SIZES, num_key_value_heads=2, rope_parameters=rope))
    decoder = decoder.to(DEVICE).eval()
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.3)
    head = nn.Linear(HIDDEN, VOCABULARY, bias=False, device=DEVICE)
    found = find_llama(LanguageModel(decoder, head, decoder.embed_tokens, (1,)))
    monkeypatch.setattr(engine_module, "find_llama", lambda _: replace(found, axes=found.axes.flip(0)))
    with pytest.raises(Unsupported, match="from the model's own"):
        GraphedEngine(LanguageModel(decoder, head, decoder.embed_tokens, (1,)))


def test_positions_of_several_axes(tmp_path):
    """M-RoPE: a picture's positions differ by axis, and text goes on from the largest."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    decoder = Qwen2VLTextModel(Qwen2VLTextConfig(**SIZES, num_key_value_heads=2, rope_parameters=rope))
    decoder = decoder.to(DEVICE).eval()
    torch.manual_seed(0)
    for parameter in decoder.parameters():
        # With the initial weights, attention is equal at all positions.
        nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.3)
    head = nn.Linear(HIDDEN, VOCABULARY, bias=False, device=DEVICE)
    model = LanguageModel(decoder, head, decoder.embed_tokens, (1,))
    eager, engine = EagerEngine(model), GraphedEngine(model, tuning=tmp_path)
    time = [0, 1, 2, 2, 2, 2, 4, 5]
    height = [0, 1, 2, 2, 3, 3, 4, 5]
    width = [0, 1, 2, 3, 2, 3, 4, 5]
    positions = torch.tensor([time, height, width], device=DEVICE)[:, None]
    given = replace(prompt(model, 8), position_ids=positions)
    flat = replace(given, position_ids=torch.tensor([time] * 3, device=DEVICE)[:, None])
    sampling = Sampling(ignore_eos=True)
    tokens = list(eager.decode(eager.prefill(given, sampling), 4))
    ours = engine.prefill(given, sampling)
    assert list(engine.decode(ours, 4)) == tokens
    wanted = eager.score(eager.prefill(given, sampling), tokens)
    torch.testing.assert_close(engine.score(ours, tokens), wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(engine.prefill(flat, sampling).logits, ours.logits, rtol=1e-3)


def test_a_prompt_with_decoder_inputs_is_answered_by_eager(model, engine):
    """A mask that is not causal: the model's own forward alone takes it."""
    given = prompt(model, 6)
    mask = torch.zeros(1, 1, 6, 6, device=DEVICE)
    masked = replace(given, decoder_inputs={"attention_mask": mask})
    eager, sampling = EagerEngine(model), Sampling(ignore_eos=True)
    wanted, ours = eager.prefill(masked, sampling), engine.prefill(masked, sampling)
    torch.testing.assert_close(ours.logits, wanted.logits)
    assert not torch.allclose(ours.logits, engine.prefill(given, sampling).logits)
    assert any("attention_mask are answered by engine eager" in note for note in engine.notes)
    tokens = list(eager.decode(wanted, 6))
    drafts = GuessedDrafts(tokens, 0, VOCABULARY)
    assert list(engine.decode(ours, 6, drafts)) == tokens
    assert drafts.counts.accepted_tokens == 4, "drafts are verified for such prompts too"


def test_an_engine_that_cannot_be_built_gives_way(model, monkeypatch):
    def fails(*_):
        raise RuntimeError("no memory left\nand more")

    monkeypatch.setattr(engine_module, "GraphedEngine", fails)
    adapter = SimpleNamespace(unsplittable=None, language=model, device=torch.device("cuda", 0), vision_modules=dict)
    chosen, (note,) = pick_engine("graphed", adapter)
    assert chosen.name == "eager"
    assert note.endswith("graphed: it could not be built (RuntimeError: no memory left)")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [5, 70])
def test_graphs_and_kernels_declare_their_matrix_products(kind, length, tmp_path):
    """The declared work is that of the weights that a pass reads, for each row that it computes."""
    model = language(kind)
    engine, given, sampling = GraphedEngine(model, tuning=tmp_path), prompt(model, length), Sampling(ignore_eos=True)
    list(engine.decode(engine.prefill(given, sampling), 2))  # captures
    weights = [w for name, w in model.decoder.layers.named_parameters() if w.dim() == 2]

    def declared(rows):
        products = [linear(rows, w.shape[1], len(w)) for w in weights]
        return sum(products, linear(1, HIDDEN, VOCABULARY)).by_width

    rows = engine.counted_rows(given)
    assert (rows.rows >= length, rows.attention) == (True, False)
    with counting_all_threads() as prefill:
        prefilled = engine.prefill(given, sampling)
    assert prefill.products.by_width == declared(rows.rows)
    with counting_all_threads() as decode:
        list(engine.decode(prefilled, 3))
    assert decode.products.by_width == {width: 2 * flops for width, flops in declared(1).items()}
