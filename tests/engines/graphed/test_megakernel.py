"""Constants shared by the kernel's source and the Python module that compiles it; ``tests/cuda`` runs the kernel."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
import torch
from transformers import LlamaConfig, LlamaModel, Qwen3Config, Qwen3Model

from unfuse.engines.graphed import megakernel
from unfuse.engines.graphed.llama import find_llama
from unfuse.engines.graphed.megakernel import Sizes, fragment_order, megakernel_sizes
from unfuse.engines.language_model import LanguageModel

SOURCE = megakernel._SOURCE.read_text(encoding="utf-8")
SMALL = {"vocab_size": 11, "hidden_size": 64, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def llama(decoder):
    decoder = decoder.bfloat16()
    head = torch.nn.Linear(64, 11, bias=False).bfloat16()
    return find_llama(LanguageModel(decoder, head, decoder.embed_tokens, (1,)))


def enum(name):
    (body,) = re.findall(rf"enum {name} {{(.*?)}};", SOURCE, re.DOTALL)
    return [entry.strip() for entry in body.split(",")]


def constant(name):
    (value,) = re.findall(rf"constexpr int {name} = ([^;]+);", SOURCE)
    return value


def test_table_is_in_the_order_of_the_source():
    found = llama(Qwen3Model(Qwen3Config(**SMALL, num_key_value_heads=1, head_dim=8)))
    table, norms = megakernel._table(found)
    assert len(table) == 3
    order = fragment_order(found.hidden)
    for index, (row, layer) in enumerate(zip(table.tolist(), found.layers, strict=False)):
        for stored, norm_weight in zip(
            norms[2 * index :], (layer.input_norm_weight, layer.post_norm_weight), strict=False
        ):
            assert torch.equal(stored, norm_weight[order])
        q_norm, k_norm = layer.head_norm_weights
        wanted = {
            "INPUT_NORM": norms[2 * index], "POST_NORM": norms[2 * index + 1], "Q_NORM": q_norm, "K_NORM": k_norm,
        }  # fmt: skip
        at = {name: tensor.data_ptr() for name, tensor in wanted.items()}
        assert dict(zip(enum("Entry"), row, strict=True)) == dict.fromkeys(enum("Entry"), 0) | at
    assert torch.equal(norms[-1], found.final_norm_weight[order])
    last = dict(zip(enum("HeadEntry"), table.tolist()[-1], strict=False))
    assert last == {"HEAD_B": 0, "FINAL_NORM": norms[-1].data_ptr()}


def test_macros_are_those_of_the_source():
    (listed,) = re.findall(r"Macros: (.*?)\. ", SOURCE, re.DOTALL)
    names = re.findall(r"[A-Z_]+", listed)
    assert [*(field.name.upper() for field in fields(Sizes)), "SHARED_BYTES"] == names


def test_constants_are_the_source_s():
    warps = int(constant("WARPS"))
    assert warps == megakernel._WARPS
    assert constant("BLOCK_THREADS") == "THREADS + (SETMAXNREG ? 128 : 32)"
    assert 32 * warps + 128 == megakernel._THREADS
    assert int(constant("SLICE")) == megakernel._SLICE
    assert int(constant("BOX")) == megakernel._BOX
    assert megakernel._ENTRIES == int(constant("ENTRIES")) == len(enum("Entry"))
    assert constant("STAGE_BYTES") == "2 * ROWS * COLUMNS"
    sizes = sizes_of(hidden=4096, layers=32, stages=12)
    assert 2 * sizes.rows * sizes.columns == megakernel._STAGE_BYTES
    assert sizes.columns == warps * 32 * sizes.runs
    assert "are multiples of 256" in SOURCE


def sizes_of(*, hidden, layers, stages):
    return Sizes(
        layers=layers, hidden=hidden, inner=2 * hidden, heads=2, kv_heads=2, head_size=128, vocabulary=9, head_norms=0,
        programs=132, stages=stages, splits=2,
    )  # fmt: skip


@pytest.mark.parametrize(("hidden", "layers", "stages"), [(4096, 32, 12), (256, 1, 12)])
def test_a_block_of_hopper_has_room_for_the_ring(hidden, layers, stages):
    """The source asserts that its structure fits into the bytes of the launch."""
    sizes = sizes_of(hidden=hidden, layers=layers, stages=stages)
    assert stages * megakernel._STAGE_BYTES < sizes.shared_bytes <= 227 * 1024
    assert "static_assert(STAGES * STAGE_BYTES + sizeof(Shared) <= SHARED_BYTES" in SOURCE


@pytest.mark.parametrize(("layers", "stages", "waits"), [(1, 12, False), (2, 12, False), (3, 12, True), (3, 14, False)])
def test_a_ring_that_reaches_from_the_first_barrier_to_the_head_is_not_used(layers, stages, waits):
    assert sizes_of(hidden=256, layers=layers, stages=stages).head_waits_for_its_counter is waits


def test_fragment_order_is_a_permutation_within_64_columns():
    order = fragment_order(256)
    assert sorted(order.tolist()) == list(range(256))
    assert torch.equal(order // 64, torch.arange(256) // 64)
    # The first 16 bytes: lane 0, whose words are columns 0 and 1 of the chunks of the first run.
    assert order[:8].tolist() == [0, 1, 8, 9, 32, 33, 40, 41]


def test_a_device_that_cannot_do_it_has_no_such_step():
    found = llama(LlamaModel(LlamaConfig(**SMALL)))
    assert found.device.type == "cpu"
    assert megakernel_sizes(found) is None
