"""Every family: the stages generate the tokens of the model's own fused ``generate``, in float32."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unfuse.adapters import hf
from unfuse.benchmarking.counted_work import count_prepared
from unfuse.errors import FeaturesError, PromptError
from unfuse.features import Features
from unfuse.report.counted_work import work_problems
from unfuse.stages import Sampling
from unfuse.verification import checks
from unfuse.verification.same_output import same_output
from unfuse.verification.watch import watch_vision

TOKENS = 12
GREEDY = Sampling()
PROMPTS = [(1, "What moves?"), (8, "What moves, and where to?"), (0, "Say something.")]
"""One frame, several frames, text alone."""


def fused(family, prepared):
    return family.adapter.fused_generate(prepared, max_new_tokens=TOKENS, sampling=GREEDY, logits=True)


@pytest.mark.parametrize(("frames", "question"), PROMPTS, ids=["one", "several", "text"])
def test_staged_answers_equal_fused_answers(family, frames, question):
    prepared = family.prepare(frames, question)
    features = family.staged.encode(prepared)
    prefilled = family.staged.prefill(prepared, features)
    (whole,) = fused(family, [prepared])
    assert family.staged.decode(prefilled, TOKENS).token_ids == whole.token_ids
    assert len(whole.token_ids) == TOKENS
    scored = family.staged.engine.score(prefilled, whole.token_ids)
    torch.testing.assert_close(scored, whole.logits, rtol=1e-3, atol=1e-3)


def test_batches_write_what_single_prompts_write(family):
    """Prompts of other lengths, text alone among them; videos of one length, as their processors want."""
    counts = [2, 2, 0] if family.processor.video else [1, 3, 0]
    prepared = [
        family.prepare(n, q, seed=i) for i, (n, q) in enumerate(zip(counts, (q for _, q in PROMPTS), strict=True))
    ]
    features = [family.staged.encode(each) for each in prepared]
    alone = [
        family.staged.decode(family.staged.prefill(p, f), TOKENS).token_ids
        for p, f in zip(prepared, features, strict=True)
    ]
    together = family.staged.generate_batch([p.question for p in prepared], features, max_new_tokens=TOKENS)
    assert (
        [answer.token_ids for answer in together] == [answer.token_ids for answer in fused(family, prepared)] == alone
    )
    assert [answer.prompt_tokens for answer in together] == [p.input_ids.shape[1] for p in prepared]


def test_scenes_encoded_together_are_those_encoded_alone(family):
    """Two that are alike, one of more frames, text alone, and one more like the first."""
    counts = [2, 2, 3, 0, 2]
    prepared = [family.prepare(n, "What moves?", seed=i) for i, n in enumerate(counts)]
    alone = [family.staged.encode(each) for each in prepared]
    with watch_vision(family.adapter.vision_modules()) as calls:
        together = family.staged.encode_batch(prepared)
    once = [family.adapter.vision_calls(each) for each in (prepared[0], prepared[2])]
    assert calls.by_name == {name: sum(each[name] for each in once) for name in once[0]}, "three of them in one batch"
    for one, other in zip(alone, together, strict=True):
        assert (one.provenance, one.layout) == (other.provenance, other.layout)
        torch.testing.assert_close(other.tensor, one.tensor)
        torch.testing.assert_close(other.layers, one.layers)
    assert float((together[0].tensor - together[1].tensor).abs().max()) > 1e-3, "other pictures"
    answers = [
        [family.staged.generate(p.question, f, max_new_tokens=TOKENS, reuse=False).token_ids for f in features]
        for p, features in zip(prepared, zip(alone, together, strict=True), strict=True)
    ]
    assert all(one == other for one, other in answers)


def test_prompts_with_missing_rows_are_encoded_separately(family, monkeypatch):
    prepared = [family.prepare(2, "What moves?", seed=i) for i in range(2)]
    alone = [family.staged.encode(each).tensor for each in prepared]
    whole = hf.split_equally
    ways = [lambda found, parts: whole(found, 1) if parts == 1 else []]
    if "pixel_values_videos" not in prepared[0].inputs:
        # As where pictures that are black all over are left out.
        ways.append(lambda f, n: [replace(p, rows=p.rows[1:]) if n > 1 else p for p in whole(f, n)])
    for way in ways:
        monkeypatch.setattr(hf, "split_equally", way)
        assert all(map(torch.equal, alone, (each.tensor for each in family.staged.encode_batch(prepared))))


def test_pictures_and_words_matter(family):
    """The answers above are equal because they are right, not because they are always the same."""
    first = family.prepare(2, "What moves?")
    logits = [
        family.staged.prefill(p, family.staged.encode(p)).logits
        for p in (first, family.prepare(2, "What moves?", seed=1), family.prepare(2, "Where does it move to?"))
    ]
    assert float((logits[0] - logits[1]).abs().max()) > 1e-2, "another picture, another answer"
    assert float((logits[0] - logits[2]).abs().max()) > 1e-2, "another question, another answer"


def test_encoded_once_for_several_questions(family):
    """Features alone, without pixels, answer every further question as a fresh prompt does."""
    prepared = family.prepare(2, "What moves?")
    with watch_vision(family.adapter.vision_modules()) as encoding:
        features = family.staged.encode(prepared)
    assert encoding.by_name == dict(family.adapter.vision_calls(prepared))
    assert sum(encoding.by_name.values()) > 0
    with watch_vision(family.adapter.vision_modules()) as reuse_calls:
        answers = [family.staged.generate(q, features, max_new_tokens=TOKENS) for q in ("Where to?", "How fast?")]
    assert reuse_calls.is_empty
    for question, answer in zip(("Where to?", "How fast?"), answers, strict=True):
        fresh = family.prepare(2, question)
        assert answer.token_ids == fused(family, [fresh])[0].token_ids
        assert answer.prompt_tokens == fresh.input_ids.shape[1]


def test_prefix_reuse_is_only_where_attention_is_causal(family):
    features = family.staged.encode(family.prepare(2, "What moves?"))
    again = [family.staged.generate("What moves?", features, max_new_tokens=2) for _ in range(2)][1]
    bidirectional = family.name in ("gemma3", "paligemma")
    assert (again.reused_prefix_tokens == 0) == bidirectional


def test_features_survive_the_disk(family, tmp_path):
    prepared = family.prepare(2, "What moves?")
    features = family.staged.encode(prepared)
    features.save(tmp_path / "scene.safetensors")
    loaded = Features.load(tmp_path / "scene.safetensors")
    assert loaded.digest == features.digest
    assert len(loaded.layers) == len(features.layers) == (2 if "qwen3" in family.name else 0)
    a, b = (family.staged.generate("Where to?", f, max_new_tokens=TOKENS, reuse=False) for f in (features, loaded))
    assert a.token_ids == b.token_ids


def test_wrong_features_are_refused(family):
    prepared, other = family.prepare(2, "What moves?"), family.prepare(3, "What moves?")
    features = family.staged.encode(other)
    with pytest.raises(FeaturesError):
        family.staged.prefill(prepared, features)
    stranger = Features(
        features.tensor, replace(features.provenance, model_fingerprint="b"), features.layers, features.layout
    )
    with pytest.raises(FeaturesError, match="another model"):
        family.staged.prefill(other, stranger)
    short = replace(features.provenance, shape=(len(features.tensor) - 1, features.tensor.shape[1]))
    with pytest.raises(FeaturesError):
        family.staged.prefill(other, Features(features.tensor[:-1], short, features.layers, features.layout))
    with pytest.raises(PromptError, match="without pixels"):
        family.staged.encode(family.adapter.tokenize("What moves?", features))


def test_the_model_is_left_as_it_was(family):
    """Methods that a split point replaces are restored, also after an error."""
    prepared = family.prepare(1, "What moves?")
    base = family.adapter.model.base_model
    before = dict(vars(base)), len(family.adapter.language.decoder._forward_pre_hooks)
    features = family.staged.encode(prepared)
    family.staged.prefill(prepared, features)
    with pytest.raises(FeaturesError):
        family.staged.prefill(family.prepare(3, "What moves?"), features)
    assert {k for k in vars(base) if k.startswith("get_")} == {k for k in before[0] if k.startswith("get_")}
    assert len(family.adapter.language.decoder._forward_pre_hooks) == before[1]


@pytest.mark.parametrize("check", [checks.encode_once, same_output, checks.features_used, checks.backward_compatible])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_checks_pass(family, check, dtype):
    model = family.adapter.model
    model.to(dtype)
    family.staged.engine.close()
    try:
        result = check(checks.Subject(family.staged, None, family.prepare(2, "What moves?"), TOKENS))
    finally:
        model.to(torch.float32)
        family.staged.engine.close()
    assert result.status == "pass", result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("frames", "question"), PROMPTS, ids=["one", "several", "text"])
def test_the_stages_execute_the_work_of_the_model(family, frames, question, dtype):
    model = family.adapter.model
    model.to(dtype)
    family.staged.engine.close()
    try:
        counted = count_prepared(family.staged, family.prepare(frames, question), 4)
    finally:
        model.to(torch.float32)
        family.staged.engine.close()
    assert not work_problems(counted)
    assert bool(counted.stages["encode"].expected) == bool(frames)
    assert all(counted.stages[name].executed for name in ("prefill", "decode"))
