"""What the source of the decode step and whoever compiles it must agree on; the step itself runs in ``tests/cuda``."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
import torch
from transformers import LlamaConfig, LlamaModel, Qwen3Config, Qwen3Model

from unfuse.engines.graphed import streamed
from unfuse.engines.graphed.streamed import Sizes, streamed_sizes
from unfuse.engines.graphed.structure import find_llama
from unfuse.engines.language_model import LanguageModel

SOURCE = streamed._SOURCE.read_text(encoding="utf-8")
SMALL = {"vocab_size": 11, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def llama(decoder):
    decoder = decoder.bfloat16()
    head = torch.nn.Linear(16, 11, bias=False).bfloat16()
    return find_llama(LanguageModel(decoder, head, decoder.embed_tokens, (1,)))


def enum(name):
    (body,) = re.findall(rf"enum {name} {{(.*?)}};", SOURCE, re.DOTALL)
    return [entry.strip() for entry in body.split(",")]


def constant(name):
    (value,) = re.findall(rf"constexpr int {name} = ([^;]+);", SOURCE)
    return value


def test_table_is_in_the_order_of_the_source():
    found = llama(Qwen3Model(Qwen3Config(**SMALL, num_key_value_heads=1, head_dim=8)))
    table = streamed._table(found).tolist()
    assert len(table) == 3
    for row, layer in zip(table, found.layers, strict=False):
        q_gain, k_gain = layer.head_gains
        wanted = {
            "QKV_W": layer.qkv.weight, "OUT_W": layer.out.weight, "GATE_UP_W": layer.gate_up.weight,
            "DOWN_W": layer.down.weight, "INPUT_GAIN": layer.input_gain, "POST_GAIN": layer.post_gain,
            "Q_GAIN": q_gain, "K_GAIN": k_gain,
        }  # fmt: skip
        at = {name: tensor.data_ptr() for name, tensor in wanted.items()}
        assert dict(zip(enum("Entry"), row, strict=True)) == dict.fromkeys(enum("Entry"), 0) | at
    last = dict(zip(enum("Last"), table[-1], strict=False))
    assert last == {
        "HEAD_W": found.head.weight.data_ptr(), "HEAD_B": 0, "FINAL_GAIN": found.final_gain.data_ptr()
    }  # fmt: skip


def test_sizes_are_those_that_the_source_asks_for():
    (listed,) = re.findall(r"whoever compiles: (.*?)\. HIDDEN", SOURCE, re.DOTALL)
    names = re.findall(r"[A-Z_]+", listed)
    assert [field.name.upper() for field in fields(Sizes)] == names


def test_constants_are_the_source_s():
    warps, block = int(constant("WARPS")), int(constant("BLOCK"))
    assert 32 * (warps + 1) == streamed._THREADS
    assert constant("STAGE_BYTES") == "2 * CHUNK * sizeof(bf16)"
    assert constant("CHUNK") == "WARPS * BLOCK"
    assert 2 * warps * block * 2 == streamed._STAGE_BYTES
    assert streamed._ENTRIES == int(constant("ENTRIES")) == len(enum("Entry"))
    assert f"{block}" in re.findall(r"are multiples of (\d+)", SOURCE)


@pytest.mark.parametrize(("hidden", "layers", "stages"), [(4096, 32, 11), (256, 1, 12)])
def test_shared_memory_is_enough_for_what_the_source_keeps_there(hidden, layers, stages):
    sizes = Sizes(
        layers=layers, hidden=hidden, inner=2 * hidden, heads=2, kv_heads=2, head_size=128, vocabulary=9, head_norms=0,
        programs=132, stages=stages, splits=2,
    )  # fmt: skip
    warps = batch = int(constant("WARPS"))
    rings = 2 * 8 * stages + -(-stages // 4) * 16
    sums, attention = 4 * 2 * batch * 2 * warps * 8, 4 * (3 * 128 + warps * (128 + 2))
    kept = rings + 2 * hidden + 4 * 2 * batch + 8 * (layers + 1) * streamed._ENTRIES + 4 * warps + max(sums, attention)
    assert sizes.shared_bytes >= stages * streamed._STAGE_BYTES + kept


def test_a_device_that_cannot_do_it_has_no_such_step():
    found = llama(LlamaModel(LlamaConfig(**SMALL)))
    assert found.device.type == "cpu"
    assert streamed_sizes(found) is None
