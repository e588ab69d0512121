"""Small language models of every kind that engine ``graphed`` serves, and prompts for them."""

from __future__ import annotations

import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
)

from unfuse.engines.language_model import LanguageModel
from unfuse.stages import Prompt

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VOCABULARY, HIDDEN = 40, 32
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
KINDS = {
    "llama": lambda: LlamaModel(LlamaConfig(**SIZES, num_key_value_heads=4)),
    "grouped queries": lambda: LlamaModel(LlamaConfig(**SIZES, num_key_value_heads=2)),
    "one key head": lambda: MistralModel(MistralConfig(**SIZES, num_key_value_heads=1, sliding_window=None)),
    "biases": lambda: Qwen2Model(Qwen2Config(**SIZES, num_key_value_heads=2)),
    "normed heads": lambda: Qwen3Model(Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=16)),
    "llama3 angles": lambda: LlamaModel(
        LlamaConfig(
            **SIZES,
            num_key_value_heads=4,
            rope_parameters={
                "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
            },
        )
    ),
}  # fmt: skip


def language(kind="llama", *, tied=False, ends=(1,), seed=0):
    torch.manual_seed(seed)
    decoder = KINDS[kind]().to(DEVICE).eval()
    for parameter in decoder.parameters():
        # Not the initial ones and zeros: they would hide a missing operation.
        nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.3)
    head = nn.Linear(HIDDEN, VOCABULARY, bias=False, device=DEVICE)
    if tied:
        head.weight = decoder.embed_tokens.weight
    return LanguageModel(decoder, head, decoder.embed_tokens, ends)


def prompt(model, length, seed=0, keys=True):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, VOCABULARY, (length,), generator=generator)
    return Prompt(
        inputs_embeds=model.embed(ids.to(DEVICE))[None].detach(), token_keys=tuple(ids.tolist()) if keys else ()
    )
