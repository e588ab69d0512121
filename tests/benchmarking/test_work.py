"""The least work of a stage, against counts by hand."""

from __future__ import annotations

import pytest
import torch

from unfuse.benchmarking.work import stage_work
from unfuse.measure.ceilings import measure_ceilings


@pytest.fixture(scope="module")
def work(demo_model, demo_sample):
    return stage_work(demo_model, demo_sample, 11)


def test_every_weight_is_multiplied_and_read_once_a_token(work, demo_model):
    language = demo_model.adapter.language
    matrices = [p for layer in language.decoder.layers for p in layer.parameters() if p.dim() > 1]
    products = sum(p.numel() for p in matrices) + language.head.weight.numel()
    decode = work["decode"]
    # Attention over some hundred positions comes on top.
    assert 2 * products * 10 < decode.flops < 2 * products * 10 * 1.2
    assert 4 * products * 10 < decode.least_bytes < 4 * products * 10 * 1.3


def test_a_prompt_multiplies_for_every_position(work, demo_model, demo_sample):
    language = demo_model.adapter.language
    prepared = demo_model.preprocess(demo_model.load(demo_sample))
    positions = prepared.text_tokens + prepared.media_tokens
    layers = sum(p.numel() for layer in language.decoder.layers for p in layer.parameters() if p.dim() > 1)
    # The head meets the last position only.
    least = 2 * (layers * positions + language.head.weight.numel())
    assert least < work["prefill"].flops < 1.3 * least
    assert work["prefill"].least_bytes < 2 * work["decode"].least_bytes / 10


def test_the_tower_belongs_to_encode_alone(work, demo_model, demo_sample):
    frames = 5
    tower = demo_model.adapter.vision_modules()["tower"]
    matrices = sum(p.numel() for name, p in tower.named_parameters() if p.dim() == 2 and "embed" not in name)
    patches = (112 // 14) ** 2 + 1
    assert work["encode"].flops > 2 * matrices * frames * patches
    assert work["encode"].least_bytes > 4 * matrices


def test_no_later_token_no_work(demo_model, demo_sample):
    decode = stage_work(demo_model, demo_sample, 1)["decode"]
    assert (decode.flops, decode.least_bytes) == (0, 0)


def test_ceilings_are_measured_once():
    cpu = torch.device("cpu")
    found = measure_ceilings(cpu, torch.float32)
    assert measure_ceilings(cpu, torch.float32) is found
    assert 1e8 < found.bytes_per_s < 1e13
    assert 1e8 < found.flops_per_s < 1e15
