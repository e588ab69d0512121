"""What only a CUDA device can show. Skipped, and listed as such, elsewhere."""

from __future__ import annotations

import pytest
import torch

from unfuse.adapters.registry import load
from unfuse.checksum import tensor_checksum
from unfuse.engines.attention import reproducible_attention
from unfuse.events import event_frames
from unfuse.events.on_device import event_frames_on
from unfuse.measure.clock import StageClock
from unfuse.measure.timers import CudaTimer
from unfuse.samples.demo import demo_sample
from unfuse.testing import synthetic_stream

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def busy(milliseconds):
    """Keeps the device busy for about so long."""
    torch.cuda._sleep(int(milliseconds * 1.5e6))


def test_stage_waits_for_the_device():
    clock = StageClock(CudaTimer(torch.device("cuda", 0)))
    with clock.stage("encode"):
        busy(20)
    time = clock.stages["encode"]
    assert time.device_ms > 5
    assert time.host_ms > 0.99 * time.device_ms, "it ends when the device does"


@pytest.mark.clock
def test_the_clocks_of_host_and_device_agree():
    clock = StageClock(CudaTimer(torch.device("cuda", 0)))
    with clock.stage("encode"):
        busy(20)
    time = clock.stages["encode"]
    assert time.host_ms == pytest.approx(time.device_ms, rel=0.05, abs=0.3)


def test_checksum_is_the_cpus():
    tensor = torch.randn(1001, 333).bfloat16()
    assert tensor_checksum(tensor.cuda()) == tensor_checksum(tensor)


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


def test_long_cache_attention_repeats():
    """The shape on which the default attention of Hopper did not."""
    q, k, v = (torch.randn(1, 32, n, 128, device="cuda", dtype=torch.bfloat16) for n in (1, 660, 660))
    with reproducible_attention():
        first = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        for _ in range(200):
            assert torch.equal(torch.nn.functional.scaled_dot_product_attention(q, k, v), first)


def test_event_frames_are_those_of_the_cpu():
    """Many events a pixel, so that threads do race."""
    stream = synthetic_stream(2_000_000, size=(64, 48))
    expected = event_frames(stream)
    for _ in range(5):
        for drawn, frame in zip(event_frames_on(stream, torch.device("cuda")), expected, strict=True):
            assert (drawn.cpu().numpy() == frame).all()
