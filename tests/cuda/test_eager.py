"""Engine ``eager`` on a CUDA device."""

from __future__ import annotations

import pytest
import torch

from tests.cuda.busy import busy
from unfuse.loading import load
from unfuse.measure.clock import StageClock
from unfuse.measure.timers import CudaTimer
from unfuse.samples.demo import demo_sample

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.clock
def test_the_clocks_of_host_and_device_agree():
    clock = StageClock(CudaTimer(torch.device("cuda", 0)))
    with clock.stage("encode"):
        busy(20)
    time = clock.stages["encode"]
    assert time.host_ms == pytest.approx(time.device_ms, rel=0.05, abs=0.3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_demo_answers_the_same_every_time(dtype):
    with load("demo", device="cuda", dtype=dtype) as model:
        sample = demo_sample("demo:0")
        prepared = model.preprocess(model.load(sample))
        answers = {model.decode(model.prefill(prepared, model.encode(prepared)), 48).token_ids for _ in range(6)}
        assert len(answers) == 1
        assert model.fused(prepared, 48).token_ids in answers


def test_float32_equals_the_cpu():
    sample = demo_sample("demo:1")
    ids = []
    for device in ("cpu", "cuda"):
        with load("demo", device=device, dtype="float32") as model:
            ids.append(model.generate("What moves?", model.encode(sample), max_new_tokens=16).token_ids)
    assert ids[0] == ids[1]
