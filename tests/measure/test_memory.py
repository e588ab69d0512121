"""Memory by stage: what a stage holds at its peak, and what it leaves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unfuse.measure.memory import MemoryClock, memory_meter
from unfuse.runs.schema import StageMemory

MIB = 2**20


def test_peak_and_resident_are_told_apart():
    meter = memory_meter(torch.device("cpu"))
    if meter is None:
        pytest.skip("this system does not count a process's memory")
    clock = MemoryClock(meter)
    kept = []
    with clock.stage("passing"):
        passing = np.ones(64 * MIB, np.uint8)
        del passing
    with clock.stage("keeping"):
        kept.append(np.ones(64 * MIB, np.uint8))
    with clock.stage("idle"):
        pass
    passing, keeping, idle = (clock.stages[name] for name in ("passing", "keeping", "idle"))
    assert passing.peak_bytes - passing.resident_bytes > 50 * MIB
    assert keeping.resident_bytes - passing.resident_bytes > 50 * MIB
    assert idle.peak_bytes - idle.resident_bytes < 16 * MIB, "the peak was reset"
    assert len(kept) == 1


def test_every_stage_is_read_once():
    class Counting:
        source = "a count"
        reads = resets = 0

        def reset_peak(self):
            self.resets += 1

        def read(self):
            self.reads += 1
            return StageMemory(peak_bytes=self.reads, resident_bytes=0)

    meter = Counting()
    clock = MemoryClock(meter)
    for name in ("load", "encode"):
        with clock.stage(name):
            pass
    assert (meter.resets, meter.reads) == (2, 2)
    assert clock.stages["encode"].peak_bytes == 2
