"""Spans by hooks: every call summed, errors pass, nothing is left on the module."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unfuse.measure.clock import StageClock
from unfuse.measure.hooks import module_spans
from unfuse.testing import AsyncDevice


class Works(nn.Module):
    def __init__(self, device, milliseconds):
        super().__init__()
        self.device = device
        self.milliseconds = milliseconds

    def forward(self, x):
        self.device.launch(self.milliseconds)
        return x


def test_all_calls_are_summed_by_the_devices_clock(fake_time):
    device = AsyncDevice(fake_time)
    tower, projector = Works(device, 20), Works(device, 5)
    clock = StageClock(device)
    with clock.stage("encode"), module_spans({"tower": tower, "projector": projector}):
        for _ in range(3):
            projector(tower(torch.zeros(1)))
    assert clock.spans["encode.tower"].device_ms == pytest.approx(60)
    assert clock.spans["encode.projector"].device_ms == pytest.approx(15)
    assert clock.spans["encode.tower"].host_ms == 0, "launching is not working"
    assert clock.stages["encode"].host_ms == pytest.approx(75)


def test_a_failing_module_closes_its_span_and_its_hooks():
    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("broken")

    module = Fails()
    clock = StageClock(AsyncDevice())
    with pytest.raises(RuntimeError, match="broken"), clock.stage("encode"), module_spans({"tower": module}):
        module(1)
    assert "encode.tower" in clock.spans
    assert not module._forward_hooks
    assert not module._forward_pre_hooks


def test_without_a_clock_hooks_do_nothing():
    module = nn.Linear(2, 2)
    with module_spans({"tower": module}):
        module(torch.zeros(1, 2))
