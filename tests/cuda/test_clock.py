"""The stage clock on a CUDA device."""

from __future__ import annotations

import pytest
import torch

from tests.cuda.busy import busy
from unfuse.measure.clock import StageClock
from unfuse.measure.timers import CudaTimer

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_stage_waits_for_the_device():
    clock = StageClock(CudaTimer(torch.device("cuda", 0)))
    with clock.stage("encode"):
        busy(20)
    time = clock.stages["encode"]
    assert time.device_ms > 5
    assert time.host_ms > 0.99 * time.device_ms, "it ends when the device does"
