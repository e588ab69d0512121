"""Stage 4 by itself: reuse, repeatability, sampling, streaming."""

from __future__ import annotations

import pytest

from unfuse.engine_choice import pick_engine
from unfuse.errors import DeviceError, PromptError
from unfuse.staged_model import StagedModel
from unfuse.stages import Sampling


@pytest.fixture(scope="module")
def features(demo_model, demo_sample):
    return demo_model.encode(demo_sample)


@pytest.fixture(scope="module")
def prepared(demo_model, demo_sample):
    return demo_model.preprocess(demo_model.load(demo_sample))


def test_a_prefilled_prompt_decodes_many_times(demo_model, prepared, features):
    prefilled = demo_model.prefill(prepared, features)
    long = demo_model.decode(prefilled, 12)
    short = demo_model.decode(prefilled, 5)
    assert long.token_ids[:5] == short.token_ids
    assert demo_model.decode(prefilled, 12) == long
    assert short.stop_reason == "length"


def test_prefix_is_reused_and_changes_nothing(demo_model, features):
    questions = ["What moves?", "What moves, and where to?", "What moves?", "Is anything still?"]
    demo_model.engine.close()
    uncached = [demo_model.generate(q, features, max_new_tokens=10, reuse=False) for q in questions]
    reused = [demo_model.generate(q, features, max_new_tokens=10) for q in questions]
    assert [a.token_ids for a in uncached] == [a.token_ids for a in reused]
    assert [a.reused_prefix_tokens for a in uncached] == [0] * 4
    assert reused[0].reused_prefix_tokens == 0
    assert all(a.reused_prefix_tokens > features.tensor.shape[0] for a in reused[1:])
    assert all(a.reused_prefix_tokens < a.prompt_tokens for a in reused)


def test_bare_stages_reuse_nothing(demo_model, prepared, features):
    for _ in range(2):
        assert demo_model.prefill(prepared, features).reused_prefix_tokens == 0


def test_changed_features_are_not_served_from_the_prefix(demo_model, prepared, features):
    from unfuse.features import Features

    demo_model.generate("What moves?", features, max_new_tokens=2)
    other = Features(features.tensor.flip(0).contiguous(), features.provenance)
    answer = demo_model.generate("What moves?", other, max_new_tokens=8)
    before_the_scene = prepared.input_ids[0].tolist().index(-200)
    assert answer.reused_prefix_tokens <= before_the_scene
    assert answer.token_ids == demo_model.generate("What moves?", other, max_new_tokens=8, reuse=False).token_ids


def test_reuse_after_a_long_answer(demo_model, features):
    """The cached prefix is the prompt's alone: an answer's own positions must never enter it."""
    long = demo_model.generate("What moves?", features, max_new_tokens=30)
    again = demo_model.generate("What moves?", features, max_new_tokens=30)
    assert again.token_ids == long.token_ids


def test_score_is_what_decode_chose_from(demo_model, prepared, features):
    prefilled = demo_model.prefill(prepared, features)
    tokens = demo_model.decode(prefilled, 8).token_ids
    logits = demo_model.engine.score(prefilled, tokens)
    assert logits.argmax(-1).tolist() == list(tokens)


def test_stream_joins_to_the_answer(demo_model, features):
    text = demo_model.generate("What moves?", features, max_new_tokens=20).text
    assert "".join(demo_model.stream("What moves?", features, max_new_tokens=20)) == text


def test_fixed_output_length(demo_model, demo_sample):
    """An end token that greedy decoding would choose is passed over, and the answer has exactly n tokens."""
    model = demo_model
    prepared = model.preprocess(model.load(demo_sample))
    features = model.encode(prepared)
    second = model.decode(model.prefill(prepared, features), 2).token_ids[1]
    settings = model.adapter.model.generation_config
    ends, settings.eos_token_id = settings.eos_token_id, second
    try:
        model = StagedModel("other end", model.adapter, *pick_engine("eager", model.adapter))
        natural = model.decode(model.prefill(prepared, features), 9)
        assert natural.token_ids[-1] == second
        assert (natural.stop_reason, natural.output_tokens) == ("eos", 2)
        fixed = model.decode(model.prefill(prepared, features, Sampling(ignore_eos=True)), 9)
        assert fixed.output_tokens == 9
        assert second not in fixed.token_ids
    finally:
        settings.eos_token_id = ends


def test_sampling_is_seeded(demo_model, prepared, features):
    def sampled(seed):
        prefilled = demo_model.prefill(prepared, features, Sampling(temperature=20.0, seed=seed))
        first = demo_model.decode(prefilled, 12).token_ids
        assert demo_model.decode(prefilled, 12).token_ids == first
        return first

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(5)}) > 1


def test_bad_arguments(demo_model, features):
    with pytest.raises(PromptError, match="at least 1"):
        demo_model.generate("What?", features, max_new_tokens=0)
    with pytest.raises(PromptError, match="temperature"):
        Sampling(temperature=float("nan"))
    with pytest.raises(DeviceError, match="warp"):
        pick_engine("warp", None)


def test_text_prompt_has_no_pixels_to_encode(demo_model, features):
    with pytest.raises(PromptError, match="without pixels"):
        demo_model.encode(demo_model.adapter.tokenize("What?", features))


def test_graphed_says_why_it_does_not_run_here(demo_model):
    engine, notes = pick_engine("graphed", demo_model.adapter)
    assert engine.name == "eager"
    assert notes == ("engine eager instead of graphed: it needs a CUDA device, and the model is on cpu",)
    assert StagedModel("demo", demo_model.adapter, engine, notes).notes[-1:] == notes
