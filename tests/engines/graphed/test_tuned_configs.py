"""Which way each kernel of a pass takes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from unfuse.engines.graphed.gemm import LIBRARY, Gemm, Scratch
from unfuse.engines.graphed.kernels import extend_attention as tails
from unfuse.engines.graphed.kernels.attention_common import Heads
from unfuse.engines.graphed.kernels.skinny_gemm import SkinnyGemmConfig
from unfuse.engines.graphed.llama import Linear
from unfuse.engines.graphed.tuned_configs import TunedConfigs, decode_configs, extend_configs, tuning_key

HEADS = Heads(32, 8, 128)


def scratch(numbers, dtype=torch.bfloat16):
    few = torch.empty(0, dtype=dtype)
    return Scratch(normed=few, wide=few, partial=SimpleNamespace(numel=lambda: numbers), semaphores=few)


def gemm(name, outputs=64, dtype=torch.bfloat16):
    return Gemm(name, [Linear(torch.zeros(outputs, 128, dtype=dtype), None)])


class Fastest:
    """Chooses the fastest candidate for the pass, after it has tried every candidate once."""

    def __init__(self, seconds):
        self.seconds, self.keys = seconds, []

    def choose(self, key, candidates, run):
        self.keys.append(key)
        times = []
        for candidate in candidates:
            run(candidate)
            times.append(self.seconds())
        return candidates[times.index(min(times))]


def test_configs_are_timed_within_the_whole_pass():
    gemms = [gemm("large"), gemm("small")]
    configs = decode_configs(HEADS, 1, torch.bfloat16)
    tuned = TunedConfigs.for_rows(16, configs, gemms, scratch(2**30))
    assert (tuned.attention, list(tuned.gemms)) == (configs[0], ["large", "small"])
    assert LIBRARY not in tuned.gemms.values(), "beside what is often fastest"
    seen = []

    def seconds():
        # The best config of the second product depends on the config of the first.
        large, small = tuned.gemms["large"], tuned.gemms["small"]
        right = isinstance(large, SkinnyGemmConfig) and large.split == 4
        return 5.0 - right - (small == LIBRARY if right else 0) - (tuned.attention == configs[2])

    tuner = Fastest(seconds)
    key = tuning_key(2, HEADS, "decode", 16, gemms)
    tuned.choose(tuner, key, lambda: seen.append(dict(tuned.gemms)))
    assert (tuned.gemms["large"].split, tuned.gemms["small"], tuned.attention) == (4, LIBRARY, configs[2])
    assert len(seen) == sum(map(len, tuned.candidates.values())) + len(configs)
    assert len(set(tuner.keys)) == 3


def test_a_single_candidate_is_not_timed():
    tuned = TunedConfigs.for_rows(16, decode_configs(HEADS, 16, torch.bfloat16), [gemm("one")], scratch(0))
    assert all(config == LIBRARY or config.split == 1 for config in tuned.candidates["one"]), "no room for parts"
    assert TunedConfigs.for_rows(128, decode_configs(HEADS, 128, torch.bfloat16), (), scratch(0)).gemms == {}


@pytest.mark.parametrize("rows", [1, 16, 64, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_decode_configs_have_enough_programs(rows, dtype):
    configs = decode_configs(HEADS, rows, dtype)
    for config in configs:
        assert config.splits >= 1
    usual = configs[0]
    assert usual.splits == 16 or rows * HEADS.num_kv_heads * usual.splits >= 264


def test_extend_configs_fit_into_the_scratch_memory():
    everything = extend_configs(HEADS, 32, scratch(2**30))
    assert tuple(everything) == tails.CANDIDATES
    some = tails.partial_size(HEADS, 32, 3, 1)
    assert {config.splits for config in extend_configs(HEADS, 32, scratch(some))} == {2, 3}


def test_float32_has_one_config_that_compiles_fast():
    assert len(decode_configs(HEADS, 1, torch.float32)) == 1
    assert extend_configs(HEADS, 64, scratch(2**30, torch.float32)) == [tails.FLOAT32_CONFIG]


def test_other_problems_have_other_keys():
    def keys(layers=2, heads=HEADS, kind="decode", rows=16, **more):
        key = tuning_key(layers, heads, kind, rows, [gemm("qkv", **more)])
        return key("qkv"), key("attention")

    others = [
        keys(layers=3), keys(heads=Heads(32, 32, 128)), keys(kind="extend"), keys(rows=32), keys(outputs=128),
        keys(dtype=torch.float32),
    ]  # fmt: skip
    assert all(other != keys() for other in others)
    assert keys() == keys()
