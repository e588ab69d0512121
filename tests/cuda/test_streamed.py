"""A decode step as one kernel against the step of many, and both against float32. Listed and skipped elsewhere."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel, Qwen2Config, Qwen2Model, Qwen3Config, Qwen3Model

from unfuse.engines.eager import EagerEngine
from unfuse.engines.graphed.engine import GraphedEngine
from unfuse.engines.graphed.streamed import streamed_sizes
from unfuse.engines.graphed.structure import find_llama
from unfuse.engines.language_model import LanguageModel
from unfuse.stages import Prompt, Sampling


def hopper():
    return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 9


pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not hopper(), reason="no device of the Hopper generation or later"),
]

SIZES = {"num_hidden_layers": 3, "max_position_embeddings": 4096}
KINDS = {
    "llama": lambda: LlamaModel(
        LlamaConfig(**SIZES, vocab_size=1001, hidden_size=512, intermediate_size=1280, num_attention_heads=4)
    ),
    # Fewer rows than there are warps, and an odd chunk at the end of a row.
    "tiny": lambda: LlamaModel(
        LlamaConfig(**SIZES, vocab_size=67, hidden_size=256, intermediate_size=768, num_attention_heads=2)
    ),
    "wide": lambda: LlamaModel(
        LlamaConfig(**SIZES, vocab_size=3003, hidden_size=4096, intermediate_size=11008, num_attention_heads=32)
    ),
    "grouped queries, biases": lambda: Qwen2Model(
        Qwen2Config(
            **SIZES, vocab_size=2000, hidden_size=1792, intermediate_size=2304, num_attention_heads=14,
            num_key_value_heads=2,
        )
    ),
    "normed heads of 64": lambda: Qwen3Model(
        Qwen3Config(
            **SIZES, vocab_size=1000, hidden_size=768, intermediate_size=1024, num_attention_heads=8,
            num_key_value_heads=4, head_dim=64,
        )
    ),
}  # fmt: skip
LENGTHS = (1, 3, 64, 65, 700)


def language(kind):
    torch.manual_seed(0)
    decoder = KINDS[kind]().cuda().eval()
    width = decoder.config.hidden_size
    for parameter in decoder.parameters():
        # Away from the initial ones and zeros, which hide what is left out.
        nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.5 * width**-0.5)
    nn.init.normal_(decoder.embed_tokens.weight)
    head = nn.Linear(width, decoder.config.vocab_size, bias=False, device="cuda")
    return LanguageModel(decoder.bfloat16(), head.bfloat16(), decoder.embed_tokens, (1,))


def upcast(model):
    decoder, head = copy.deepcopy(model.decoder).float(), copy.deepcopy(model.head).float()
    return LanguageModel(decoder, head, decoder.embed_tokens, model.end_ids)


def prompt(model, length):
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(2, model.decoder.config.vocab_size, (length,), generator=generator)
    return Prompt(inputs_embeds=model.embed(ids.cuda())[None].detach(), token_keys=tuple(ids.tolist()))


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return language(request.param)


@pytest.fixture(scope="module")
def engines(model, tmp_path_factory):
    """The step as one kernel and as many."""
    folder = tmp_path_factory.mktemp("tuning")
    one = GraphedEngine(model, tuning=folder)
    assert one._network._streamed is not None, one.notes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unfuse.engines.graphed.network.streamed_sizes", lambda _: None)
        many = GraphedEngine(model, tuning=folder)
    assert many._network._streamed is None
    yield one, many
    one.close()
    many.close()


def apart(mine, theirs):
    return float((mine.double() - theirs.double()).norm() / theirs.double().norm())


@torch.no_grad()
def test_logits(model, engines):
    one, many = engines
    tokens = [5 + i % 50 for i in range(70)]
    exact = EagerEngine(upcast(model))
    for length in LENGTHS:
        asked = prompt(model, length)
        scores = [engine.score(engine.prefill(asked, Sampling()), tokens) for engine in (one, many)]
        wide = Prompt(inputs_embeds=asked.inputs_embeds.float(), token_keys=asked.token_keys)
        truth = exact.score(exact.prefill(wide, Sampling()), tokens)
        errors = [apart(score, truth) for score in scores]
        assert errors[0] < 0.03, (length, errors)
        assert errors[0] < 1.2 * errors[1], (length, errors)


def test_the_same_bits_every_time(model, engines):
    one, _ = engines
    asked = one.prefill(prompt(model, 300), Sampling(ignore_eos=True))
    first = one.score(asked, list(range(5, 45)))
    list(one.decode(one.prefill(prompt(model, 90), Sampling(ignore_eos=True)), 20))
    for _ in range(5):
        assert torch.equal(one.score(asked, list(range(5, 45))), first)


def test_what_is_written_is_what_was_scored(model, engines):
    one, _ = engines
    asked = one.prefill(prompt(model, 40), Sampling(ignore_eos=True))
    tokens = list(one.decode(asked, 100))
    scores = one.score(asked, tokens)
    scores[:, 1] = -torch.inf
    assert scores.argmax(-1).tolist() == tokens


def test_sizes_that_do_not_fit_keep_the_many_kernels(model):
    llama = find_llama(model)
    assert streamed_sizes(llama) is not None
    assert streamed_sizes(find_llama(upcast(model))) is None
