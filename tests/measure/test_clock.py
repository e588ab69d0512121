"""The clock against a device with known times of work."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import accumulate, cycle

import pytest

from unfuse.measure import host_time
from unfuse.measure.clock import NoClock, StageClock, edge_cost_ms, listening, paused_gc, resolution_ns, span, zero_of
from unfuse.measure.timers import HostTimer
from unfuse.measure.warmup import MAX_REPEATS, is_steady
from unfuse.testing import AsyncDevice


def test_asynchronous_work_is_waited_for(fake_time):
    device = AsyncDevice(fake_time)
    clock = StageClock(device)
    with clock.stage("encode"):
        device.launch(20)
    with clock.stage("decode"):
        pass
    encode, decode = clock.stages["encode"], clock.stages["decode"]
    assert encode.host_ms == encode.device_ms == pytest.approx(20)
    assert decode.host_ms == 0


def test_work_from_before_is_not_counted(fake_time):
    device = AsyncDevice(fake_time)
    clock = StageClock(device)
    device.launch(30)
    with clock.stage("encode"):
        pass
    assert fake_time.now == pytest.approx(0.03), "it was waited for before the stage"
    assert clock.stages["encode"].host_ms == 0


def test_spans_do_not_wait(fake_time):
    device = AsyncDevice(fake_time)
    clock = StageClock(device)
    with clock.stage("encode"), span("tower"):
        device.launch(20)
    tower = clock.spans["encode.tower"]
    assert tower.host_ms == 0
    assert tower.device_ms == pytest.approx(20)


def test_repeated_spans_add_up(fake_time):
    device = AsyncDevice(fake_time)
    clock = StageClock(device)
    with clock.stage("encode"):
        for _ in range(3):
            with span("tower"):
                device.launch(5)
    assert clock.spans["encode.tower"].device_ms == pytest.approx(15)


def test_beginnings_follow_each_other_on_both_clocks(fake_time):
    device = AsyncDevice(fake_time)
    fake_time.sleep(1)
    clock = StageClock(device, fake_time.perf_counter_ns())
    fake_time.sleep(0.001)
    with clock.stage("encode"):
        with span("tower"):
            device.launch(20)
            fake_time.sleep(0.002)
        with span("projector"):
            device.launch(5)
    with clock.stage("decode"):
        device.launch(5)
    encode, decode = clock.stages["encode"], clock.stages["decode"]
    tower, projector = clock.spans["encode.tower"], clock.spans["encode.projector"]
    assert [each.start_ms for each in (encode, tower, projector, decode)] == pytest.approx([1, 1, 3, 26])
    assert projector.device_start_ms == pytest.approx(21), "the device comes to it later than the host"
    assert encode.device_start_ms == encode.start_ms
    assert projector.device_start_ms + projector.device_ms == pytest.approx(encode.start_ms + encode.host_ms)


def test_entries_of_a_repeated_span_are_recorded(fake_time):
    device = AsyncDevice(fake_time)
    clock = StageClock(device)
    with clock.stage("encode"):
        for milliseconds in (5, 10, 15):
            with span("tower"):
                device.launch(milliseconds)
                fake_time.sleep(0.001)
    tower = clock.spans["encode.tower"]
    assert [entry.device_ms for entry in tower.entries] == pytest.approx([5, 10, 15])
    assert [entry.host_ms for entry in tower.entries] == pytest.approx([1, 1, 1])
    assert tower.host_ms == pytest.approx(3)
    assert [entry.start_ms for entry in tower.entries] == pytest.approx([0, 1, 2])
    assert tower.start_ms == tower.entries[0].start_ms


def test_zero_is_a_moment_of_the_wall_clock(fake_time, monkeypatch):
    now = datetime(2026, 7, 1, 12, tzinfo=UTC)
    monkeypatch.setattr("unfuse.measure.clock.time.time_ns", lambda: int(now.timestamp()) * 10**9)
    fake_time.sleep(5)
    assert zero_of((now - timedelta(hours=1)).isoformat()) == (5 - 3600) * 10**9


def test_spans_go_to_whoever_listens():
    class Listener:
        def __init__(self):
            self.seen = []

        @contextmanager
        def span(self, name):
            self.seen.append(name)
            yield

    listener = Listener()
    with listening(listener), span("tower"):
        pass
    with span("projector"):
        pass
    assert listener.seen == ["tower"]


def test_host_stages_have_no_device_time():
    clock = StageClock(AsyncDevice())
    with clock.stage("load"):
        pass
    with clock.stage("preprocess"):
        pass
    assert clock.stages["load"].device_ms is None
    assert clock.stages["preprocess"].device_ms is None, "only its upload uses the device"


def test_preprocess_device_time_is_its_upload(fake_time):
    device = AsyncDevice(fake_time)
    clock = StageClock(device)
    with clock.stage("preprocess"), span("upload"):
        device.launch(8)
    assert clock.stages["preprocess"].device_ms == pytest.approx(8)


def test_cpu_has_no_device_clock():
    clock = StageClock(HostTimer())
    with clock.stage("encode"):
        pass
    assert clock.stages["encode"].device_ms is None


def test_span_without_a_clock_does_nothing():
    with span("tower"), NoClock().stage("encode"):
        pass


def test_stage_is_closed_after_an_error():
    clock = StageClock(HostTimer())
    with pytest.raises(ZeroDivisionError), clock.stage("encode"):
        _ = 1 / 0
    with span("tower"):
        pass
    assert set(clock.stages) == {"encode"}
    assert not clock.spans


def test_collector_is_paused_and_restored():
    assert gc.isenabled()
    with paused_gc():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with paused_gc():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_resolution_is_the_smallest_step(monkeypatch):
    readings = accumulate(cycle([0, 0, 70, 0, 40]))
    monkeypatch.setattr(host_time, "now_ns", lambda: next(readings))
    assert resolution_ns() == 40


def test_the_cost_of_an_edge_is_the_median_of_empty_stages(fake_time):
    class Slow(HostTimer):
        """Takes 1 ms to synchronise; now and then a second."""

        calls = 0

        def synchronize(self):
            self.calls += 1
            fake_time.sleep(1 if self.calls % 10 == 0 else 0.001)

    assert edge_cost_ms(Slow(), repeats=50) == pytest.approx(2)


@pytest.mark.clock
def test_the_clock_is_cheap():
    assert 0 < resolution_ns() < 100_000
    assert 0 < edge_cost_ms(HostTimer(), repeats=50) < 1


@pytest.mark.parametrize(
    ("totals", "minimum", "steady"),
    [
        ([], 2, False),
        ([], 0, True),
        ([100.0], 1, False),
        ([100.0, 10.0], 2, False),
        ([100.0, 10.0, 10.5], 2, True),
        ([100.0, 10.0, 11.5], 2, False),
        ([10.0, 10.0], 3, False),
        ([10.0 * 2**i for i in range(MAX_REPEATS)], 2, True),
    ],
)
def test_steady(totals, minimum, steady):
    assert is_steady(totals, minimum) is steady
