"""The clock against a device whose work takes known times."""

from __future__ import annotations

import gc
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest

from unfuse.measure.clock import NoClock, StageClock, edge_cost_ms, listening, paused_gc, resolution_ns, span, zero_of
from unfuse.measure.timers import HostTimer
from unfuse.measure.warmup import MAX_REPEATS, is_steady
from unfuse.testing import AsyncDevice


def test_asynchronous_work_is_waited_for():
    device = AsyncDevice()
    clock = StageClock(device)
    with clock.stage("encode"):
        device.launch(20)
    with clock.stage("decode"):
        pass
    encode, decode = clock.stages["encode"], clock.stages["decode"]
    assert encode.host_ms >= 20
    assert encode.device_ms == pytest.approx(20, abs=5)
    assert decode.host_ms < 20


def test_work_from_before_is_not_counted():
    device = AsyncDevice()
    clock = StageClock(device)
    device.launch(30)
    with clock.stage("encode"):
        pass
    assert clock.stages["encode"].host_ms < 25


def test_spans_do_not_wait():
    device = AsyncDevice()
    clock = StageClock(device)
    with clock.stage("encode"), span("tower"):
        device.launch(20)
    tower = clock.spans["encode.tower"]
    assert tower.host_ms < 15
    assert tower.device_ms == pytest.approx(20, abs=5)


def test_repeated_spans_add_up():
    device = AsyncDevice()
    clock = StageClock(device)
    with clock.stage("encode"):
        for _ in range(3):
            with span("tower"):
                device.launch(5)
    assert clock.spans["encode.tower"].device_ms == pytest.approx(15, abs=5)


def test_beginnings_follow_each_other_on_both_clocks():
    device = AsyncDevice()
    zero = time.perf_counter_ns()
    clock = StageClock(device, zero)
    with clock.stage("encode"):
        with span("tower"):
            device.launch(20)
        with span("projector"):
            device.launch(5)
    with clock.stage("decode"):
        device.launch(5)
    encode, decode = clock.stages["encode"], clock.stages["decode"]
    tower, projector = clock.spans["encode.tower"], clock.spans["encode.projector"]
    assert 0 <= encode.start_ms <= tower.start_ms <= projector.start_ms
    assert encode.start_ms + encode.host_ms <= decode.start_ms <= (time.perf_counter_ns() - zero) / 1e6
    assert projector.start_ms < 15, "the host is done launching long before the device is done"
    assert projector.device_start_ms == pytest.approx(tower.device_start_ms + 20, abs=5), "the device comes to it later"
    assert encode.device_start_ms == encode.start_ms
    assert projector.device_start_ms + projector.device_ms <= encode.start_ms + encode.host_ms + 1


def test_entries_of_a_repeated_span_are_kept():
    device = AsyncDevice()
    clock = StageClock(device, time.perf_counter_ns())
    with clock.stage("encode"):
        for milliseconds in (5, 10, 15):
            with span("tower"):
                device.launch(milliseconds)
    tower = clock.spans["encode.tower"]
    assert [entry.device_ms for entry in tower.entries] == pytest.approx([5, 10, 15], abs=4)
    assert sum(entry.host_ms for entry in tower.entries) == pytest.approx(tower.host_ms)
    assert [entry.start_ms for entry in tower.entries] == sorted(entry.start_ms for entry in tower.entries)
    assert tower.start_ms == tower.entries[0].start_ms


def test_zero_is_a_moment_of_the_wall_clock():
    created = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    assert time.perf_counter_ns() - zero_of(created) == pytest.approx(3600e9, rel=1e-3)


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


def test_preprocess_device_time_is_its_upload():
    device = AsyncDevice()
    clock = StageClock(device)
    with clock.stage("preprocess"), span("upload"):
        device.launch(8)
    assert clock.stages["preprocess"].device_ms == pytest.approx(8, abs=5)


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
