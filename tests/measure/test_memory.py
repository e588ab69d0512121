"""Memory by stage: at the stage's peak, and after it."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from tests.started import wait_for
from unfuse.measure.memory import MemoryClock, MemoryTrack, memory_meter
from unfuse.records.schema import StageMemory

MIB = 2**20


def test_peak_and_resident_are_distinguished():
    meter = memory_meter(torch.device("cpu"))
    if meter is None:
        pytest.skip("this system does not count a process's memory")
    clock = MemoryClock(meter)
    arrays = []
    with clock.stage("passing"):
        passing = np.ones(64 * MIB, np.uint8)
        del passing
    with clock.stage("keeping"):
        arrays.append(np.ones(64 * MIB, np.uint8))
    with clock.stage("idle"):
        pass
    passing, keeping, idle = (clock.stages[name] for name in ("passing", "keeping", "idle"))
    assert passing.peak_bytes - passing.resident_bytes > 50 * MIB
    assert keeping.resident_bytes - passing.resident_bytes > 50 * MIB
    assert idle.peak_bytes - idle.resident_bytes < 16 * MIB, "the peak was reset"
    assert len(arrays) == 1


def test_every_stage_is_read_once():
    class Counting:
        source = "a count"
        reads = resets = 0

        def reset_peak(self):
            self.resets += 1

        def read(self):
            self.reads += 1
            return StageMemory(peak_bytes=self.reads, resident_bytes=0)

        def allocated(self):
            return 0

    meter = Counting()
    clock = MemoryClock(meter)
    for name in ("load", "encode"):
        with clock.stage(name):
            pass
    assert (meter.resets, meter.reads) == (2, 2)
    assert clock.stages["encode"].peak_bytes == 2


class Rising:
    """Holds one byte more at each reading; a reading takes 10 ms of its clock."""

    source = "a count"
    used_bytes = 0

    def __init__(self, clock):
        self.clock = clock

    def reset_peak(self):
        pass

    def read(self):
        return StageMemory(peak_bytes=self.used_bytes, resident_bytes=self.used_bytes)

    def allocated(self):
        self.clock.sleep(0.01)
        self.used_bytes += 1
        return self.used_bytes


@pytest.fixture
def rising(fake_time, monkeypatch):
    monkeypatch.setattr("unfuse.measure.memory._PERIOD_S", 0.001)
    return Rising(fake_time)


def test_memory_over_time(rising):
    with MemoryTrack(rising) as track:
        wait_for(lambda: rising.used_bytes > 5)  # it is read while the body runs
        track.note()
    assert [used for _, used in track.readings] == list(range(1, rising.used_bytes + 1))
    assert [ms for ms, _ in track.readings] == pytest.approx([10 * i for i in range(rising.used_bytes)])
    assert "memory" not in [thread.name for thread in threading.enumerate()], "nobody reads any more"


def test_a_long_track_gives_up_every_other_reading(rising, monkeypatch):
    monkeypatch.setattr("unfuse.measure.memory._MAX_READINGS", 8)
    with MemoryTrack(rising) as track:
        wait_for(lambda: rising.used_bytes > 24)
    assert 4 <= len(track.readings) < 12


def test_what_the_process_holds_now():
    meter = memory_meter(torch.device("cpu"))
    if meter is None:
        pytest.skip("this system does not count a process's memory")
    before = meter.allocated()
    array = np.ones(64 * MIB, np.uint8)
    assert meter.allocated() - before > 50 * MIB
    assert len(array) == 64 * MIB
    assert abs(meter.allocated() - meter.read().resident_bytes) < 16 * MIB
