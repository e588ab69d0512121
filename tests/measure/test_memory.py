"""Memory by stage: what a stage holds at its peak, and what it leaves."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from unfuse.measure.memory import MemoryClock, MemoryTrack, memory_meter
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

        def held(self):
            return 0

    meter = Counting()
    clock = MemoryClock(meter)
    for name in ("load", "encode"):
        with clock.stage(name):
            pass
    assert (meter.resets, meter.reads) == (2, 2)
    assert clock.stages["encode"].peak_bytes == 2


class Rising:
    """Holds one byte more at each reading."""

    source = "a count"
    bytes_held = 0

    def reset_peak(self):
        pass

    def read(self):
        return StageMemory(peak_bytes=self.bytes_held, resident_bytes=self.bytes_held)

    def held(self):
        self.bytes_held += 1
        return self.bytes_held


def test_memory_over_time():
    with MemoryTrack(Rising(), time.perf_counter_ns()) as track:
        time.sleep(0.1)
        track.note()
    times = [ms for ms, _ in track.readings]
    assert times == sorted(times)
    assert len(track.readings) > 5, "it is read while the body runs"
    assert 0 <= times[0] < 50
    assert times[-1] >= 100
    count = len(track.readings)
    time.sleep(0.03)
    assert len(track.readings) == count, "nobody reads any more"


def test_a_long_track_gives_up_every_other_reading(monkeypatch):
    monkeypatch.setattr("unfuse.measure.memory._MOST_READINGS", 8)
    monkeypatch.setattr("unfuse.measure.memory._EVERY_S", 0.001)
    with MemoryTrack(Rising()) as track:
        time.sleep(0.1)
    assert len(track.readings) < 12


def test_what_the_process_holds_now():
    meter = memory_meter(torch.device("cpu"))
    if meter is None:
        pytest.skip("this system does not count a process's memory")
    before = meter.held()
    kept = np.ones(64 * MIB, np.uint8)
    assert meter.held() - before > 50 * MIB
    assert len(kept) == 64 * MIB
    assert abs(meter.held() - meter.read().resident_bytes) < 16 * MIB
