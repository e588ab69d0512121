"""Engine ``vllm`` with vLLM itself on a GPU, against ``eager``. Skipped, and listed, elsewhere."""

from __future__ import annotations

import gc
import importlib.util

import pytest
import torch
import transformers as hf
from torch import nn

from tests.adapters import families
from unfuse.engines.batching import Request
from unfuse.engines.eager import EagerEngine
from unfuse.engines.language_model import LanguageModel
from unfuse.engines.vllm.engine import VllmEngine
from unfuse.loading import load
from unfuse.models.eventgpt.prompt import EVENT_INDEX
from unfuse.samples.demo import demo_dataset, demo_sample
from unfuse.stages import Prompt, Sampling
from unfuse.verification import checks, verify_model
from unfuse.verification.checks import Subject
from unfuse.verification.golden import read_golden
from unfuse.verification.same_output import same_output

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed"),
    # Warnings of vLLM and its libraries; none concerns these tests.
    pytest.mark.filterwarnings("ignore"),
]

EAGER = {
    "qwen2_5_vl": "none of llama",
    "qwen2_5_vl_video": "none of llama",
    "qwen3_vl": "none of llama",
    "qwen3_vl_video": "none of llama",
    "gemma3": "none of llama",
    "paligemma": "none of llama",
}
"""Families with a language model that vLLM does not support, and a word of the reason."""
TIMING = ("timing-additive", "hooks-agree", "steady")
"""Checks of ``verify`` that read the clock: other work beside a test fails them."""
CHECKS = [checks.encode_once, same_output, checks.features_used, checks.backward_compatible]
FREE = Sampling(ignore_eos=True)


@pytest.fixture
def uncompiled(monkeypatch):
    """Starts in seconds."""
    monkeypatch.setitem(VllmEngine.__init__.__kwdefaults__, "enforce_eager", True)


SIZES = {
    "vocab_size": 96,
    "hidden_size": 256,
    "intermediate_size": 320,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
KINDS = {
    "llama": (hf.LlamaConfig, hf.LlamaModel, {}),
    "mistral": (hf.MistralConfig, hf.MistralModel, {"sliding_window": None}),
    "qwen2": (hf.Qwen2Config, hf.Qwen2Model, {}),
    "qwen3": (hf.Qwen3Config, hf.Qwen3Model, {"head_dim": 64}),
}


def language(kind="llama"):
    """In float32, with heads of 64."""
    config, runner, more = KINDS[kind]
    torch.manual_seed(0)
    decoder = runner(config(**SIZES, **more)).cuda().eval()
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.15)
    return LanguageModel(decoder, nn.Linear(256, 96, bias=False, device="cuda"), decoder.embed_tokens, (1,))


def prompt(model, length, seed=0):
    ids = torch.randint(2, 96, (length,), generator=torch.Generator().manual_seed(seed)).cuda()
    return Prompt(inputs_embeds=model.embed(ids)[None].detach(), token_keys=tuple(ids.tolist()))


@pytest.mark.parametrize("name", families.FAMILIES)
def test_families(name, uncompiled):
    family = families.build(name, device="cuda", dtype=torch.bfloat16, engine="vllm")
    with family.staged as staged:
        if name in EAGER:
            assert staged.engine.name == "eager"
            assert any("instead of vllm" in note and EAGER[name] in note for note in staged.notes), staged.notes
            return
        assert staged.engine.name == "vllm", staged.notes
        prepared = family.prepare(2, "What moves?")
        for check in CHECKS:
            result = check(Subject(staged, None, prepared, 12))
            assert result.status == "pass", result
        assert not [note for note in staged.notes if "answered by engine eager" in note]


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_decoders(kind, uncompiled):
    model = language(kind)
    engine, eager = VllmEngine(model), EagerEngine(model)
    try:
        for length in (1, 16, 40):
            given = prompt(model, length)
            mine, own = engine.prefill(given, FREE), eager.prefill(given, FREE)
            torch.testing.assert_close(mine.logits, own.logits, rtol=1e-3, atol=1e-3)
            assert list(engine.decode(mine, 20)) == list(eager.decode(own, 20))
    finally:
        engine.close()


def test_requests_that_join_and_leave(uncompiled):
    model = language()
    engine, eager = VllmEngine(model, capacity=8), EagerEngine(model)
    requests = [
        Request(request_id=str(n), prompt=prompt(model, 5 + 7 * n, n), max_new_tokens=1 + 3 * (n % 9), sampling=s)
        for n, s in enumerate([Sampling(), FREE] * 12)
    ]
    batch = engine.continuous()
    batch.add(requests[:10])
    ids = {request.request_id: [] for request in requests}
    remaining = iter(requests[10:])
    while batch.unfinished:
        for token in batch.step():
            ids[token.request_id].append(token.token_id)
        batch.add([request for request in [next(remaining, None)] if request])
    own = {r.request_id: list(eager.decode(eager.prefill(r.prompt, r.sampling), r.max_new_tokens)) for r in requests}
    engine.close()
    assert ids == own


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_demo_compiled_and_captured(name):
    with load("demo", device="cuda", dtype=name, engine="vllm") as model:
        assert model.engine.name == "vllm", model.notes
        found = {row.name: row for row in verify_model(model, demo_sample("demo:0"), max_new_tokens=24).results}
        assert {key for key, row in found.items() if row.status == "fail"} <= set(TIMING), found
        samples = demo_dataset(max_samples=6).samples
        scenes = [model.encode(sample) for sample in samples]
        # Of another scene than was verified with; of all scenes, the text before them is shared.
        first = model.generate("What moves?", scenes[1])
        again = model.generate("Is it raining?", scenes[1])
        before = model.preprocess(model.load(samples[1])).token_ids.index(EVENT_INDEX)
        assert first.reused_prefix_tokens <= before < again.reused_prefix_tokens
        questions = [sample.question or "What moves?" for sample in samples]
        together = model.generate_batch(questions, scenes)
        with load("demo", device="cuda", dtype=name, engine="eager") as eager:
            own = [eager.generate(q, eager.encode(s), reuse=False) for q, s in zip(questions, samples, strict=True)]
        if name == "float32":
            assert [answer.token_ids for answer in together] == [answer.token_ids for answer in own]
        assert sum(a.text == b.text for a, b in zip(together, own, strict=True)) >= 5


@pytest.mark.clock
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_timing_of_the_demo(name):
    """The two run the vision side in different ways, and tokens come in other steps than the clock's edges."""
    with load("demo", device="cuda", dtype=name, engine="vllm") as model:
        found = {row.name: row for row in verify_model(model, demo_sample("demo:0"), max_new_tokens=24).results}
    assert {key: row for key, row in found.items() if key in TIMING and row.status == "fail"} == {}
    assert found.keys() >= set(TIMING)


def test_small_heads_in_float32_run_on_eager():
    family = families.build("llava", device="cuda", dtype=torch.float32, engine="vllm")
    assert any("no attention ready for heads of 16 in float32" in note for note in family.staged.notes)


def test_golden_checkpoint(golden_dir, uncompiled):
    checkpoint = golden_dir / "checkpoints" / "EventGPT-tiny"
    with load(str(checkpoint), device="cuda", dtype="float32", engine="vllm") as model:
        assert model.engine.name == "vllm", model.notes
        subject = checks.subject(model, demo_sample("demo:0"), 24)
        for check in CHECKS:
            result = check(subject)
            assert result.status == "pass", result
        reference = read_golden(golden_dir)
        results = {row.name: row for row in verify_model(model, demo_sample("demo:0"), max_new_tokens=24,
                                                         reference=reference).results}  # fmt: skip
        assert results["golden"].status == "pass", results["golden"]


def test_weights_are_stored_once_and_memory_is_freed(uncompiled):
    gc.collect()
    torch.cuda.empty_cache()
    with load("random:llava-tiny", device="cuda", dtype="bfloat16", engine="eager"):
        alone = torch.cuda.memory_allocated()
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    with load("random:llava-tiny", device="cuda", dtype="bfloat16", engine="vllm") as model:
        assert model.engine.name == "vllm", model.notes
        model.close()
        gc.collect()
        assert torch.cuda.memory_allocated() - before < 2 * (alone - before) + (64 << 20)
