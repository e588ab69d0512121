"""A decode step as one kernel against the step of many, and both against float32. Listed and skipped elsewhere."""

from __future__ import annotations

import copy
import functools
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel, Qwen2Config, Qwen2Model, Qwen3Config, Qwen3Model

from unfuse.engines.eager import EagerEngine
from unfuse.engines.graphed.engine import GraphedEngine
from unfuse.engines.graphed.kv_cache import new_kv_cache
from unfuse.engines.graphed.llama import find_llama
from unfuse.engines.graphed.megakernel import MAX_TOKENS, Megakernel, fragment_order, megakernel_sizes
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
        # Not the initial ones and zeros: they would hide a missing operation.
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
    assert one._runner.megakernel is not None, one.notes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unfuse.engines.graphed.model_runner.megakernel_sizes", lambda _: None)
        many = GraphedEngine(model, tuning=folder)
    assert many._runner.megakernel is None
    yield one, many
    one.close()
    many.close()


@pytest.fixture(scope="module")
def passes(model):
    return Passes(model)


def relative_error(mine, theirs):
    return float((mine.double() - theirs.double()).norm() / theirs.double().norm())


@torch.no_grad()
def test_logits(model, engines):
    one, many = engines
    tokens = [5 + i % 50 for i in range(70)]
    exact = EagerEngine(upcast(model))
    for length in LENGTHS:
        given = prompt(model, length)
        scores = [engine.score(engine.prefill(given, Sampling()), tokens) for engine in (one, many)]
        wide = Prompt(inputs_embeds=given.inputs_embeds.float(), token_keys=given.token_keys)
        truth = exact.score(exact.prefill(wide, Sampling()), tokens)
        errors = [relative_error(score, truth) for score in scores]
        assert errors[0] < 0.03, (length, errors)
        assert errors[0] < 1.2 * errors[1], (length, errors)


def test_the_same_bits_every_time(model, engines):
    one, _ = engines
    prefilled = one.prefill(prompt(model, 300), Sampling(ignore_eos=True))
    first = one.score(prefilled, list(range(5, 45)))
    list(one.decode(one.prefill(prompt(model, 90), Sampling(ignore_eos=True)), 20))
    for _ in range(5):
        assert torch.equal(one.score(prefilled, list(range(5, 45))), first)


def test_what_is_written_is_what_was_scored(model, engines):
    one, _ = engines
    prefilled = one.prefill(prompt(model, 40), Sampling(ignore_eos=True))
    tokens = list(one.decode(prefilled, 100))
    scores = one.score(prefilled, tokens)
    scores[:, 1] = -torch.inf
    assert scores.argmax(-1).tolist() == tokens


class Passes:
    """Passes of the kernel over tokens of one sequence, with noise in the cache and the rotary angles."""

    def __init__(self, model, capacity=2112):
        torch.manual_seed(1)
        self.llama = llama = find_llama(model)
        self.step = Megakernel(llama, megakernel_sizes(llama))
        self.memory = self.step.memory()
        self.sequence = new_kv_cache(llama, capacity)
        self.noise = torch.randn_like(self.sequence.buffer)
        half = llama.heads.head_dim // 2
        angles = torch.rand(capacity, half, device="cuda") * 6
        self.angles = angles.cos().bfloat16(), angles.sin().bfloat16()
        self.embeds = torch.randn(MAX_TOKENS, llama.hidden, device="cuda").bfloat16()
        self.order = fragment_order(llama.hidden).cuda()

    def __call__(self, first, count, length):
        """Return logits and new cache entries of ``count`` tokens; the outputs of a pass are NaN before."""
        memory, buffer = self.memory, self.sequence.buffer
        logits = torch.full((count, self.llama.head.weight.shape[0]), torch.nan, device="cuda")
        for tensor in (memory.x, memory.qkv, memory.attended, memory.inner, buffer[:, :, :, length:]):
            tensor.fill_(torch.nan)
        memory.x[:count] = self.embeds[first : first + count, self.order]
        memory.count.fill_(count)
        cosine, sine = (angle[length : length + count].contiguous() for angle in self.angles)
        whole = functools.partial(torch.tensor, dtype=torch.int32, device="cuda")
        batch = SimpleNamespace(
            logits=logits, cosine=cosine, sine=sine, capacity=whole([self.sequence.capacity]),
            write_position=whole([length]),
            caches=torch.tensor([self.sequence.offset(memory.x)], device="cuda"),
        )  # fmt: skip
        self.step(batch, memory, memory.x)
        torch.cuda.synchronize()
        return logits, buffer[:, :, :, length : length + count].clone()


def same_bits(mine, theirs):
    whole = torch.int32 if mine.dtype == torch.float32 else torch.int16
    return torch.equal(mine.contiguous().view(whole), theirs.contiguous().view(whole))


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 31, 32, 33, 63, 64, 65, 66, 127, 128, 636, 2047 - MAX_TOKENS])
def test_bits_do_not_depend_on_the_number_of_tokens(model, passes, length):
    passes.sequence.buffer.copy_(passes.noise)
    alone = [passes(token, 1, length + token) for token in range(MAX_TOKENS)]
    logits, cached = torch.cat([each[0] for each in alone]), torch.cat([each[1] for each in alone], 3)
    assert logits.isfinite().all()
    for count in range(1, MAX_TOKENS + 1):
        together = passes(0, count, length)
        assert same_bits(together[0], logits[:count]), count
        assert same_bits(together[1], cached[:, :, :, :count]), count


@torch.no_grad()
def test_a_pass_of_no_tokens_writes_nothing(passes):
    passes.sequence.buffer.copy_(passes.noise)
    before = passes(0, 3, 40)
    assert before[0].isfinite().all()
    buffer = passes.sequence.buffer.clone()
    logits, _ = passes(0, 0, 40)
    assert logits.shape[0] == 0
    assert passes.memory.barrier_counter.item() in (0, -(2**31))
    assert same_bits(passes.sequence.buffer[:, :, :, :40], buffer[:, :, :, :40])
    assert same_bits(passes(0, 3, 40)[0], before[0])


def test_sizes_that_do_not_fit_keep_the_many_kernels(model):
    llama = find_llama(model)
    assert megakernel_sizes(llama) is not None
    assert megakernel_sizes(find_llama(upcast(model))) is None
