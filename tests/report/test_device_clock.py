"""Device times that are computed from host times."""

from __future__ import annotations

import numpy as np
import pytest

from unfuse.records import SampleRecord, StageTime
from unfuse.report.device_clock import EXACT_MS, MIN_READINGS, copied_clock


def records(device, host=None, stage="decode"):
    host = np.random.default_rng(0).normal(100, 3, len(device)) if host is None else host
    return [
        SampleRecord(sample_id=str(i), status="ok", stages={stage: StageTime(host_ms=h, device_ms=d)})
        for i, (h, d) in enumerate(zip(host, device, strict=True))
    ]


HOST = np.random.default_rng(1).normal(100, 3, 12)
LATE = np.random.default_rng(2).uniform(0.018, 0.024, 12)


@pytest.mark.parametrize(
    "device", [HOST, HOST - 0.02, 0.97 * HOST, 0.9 * HOST - 3], ids=["equal", "less", "share", "line"]
)
@pytest.mark.parametrize("stage", ["encode", "prefill", "decode", "fused_generate"])
def test_copies_are_found(device, stage):
    assert f"device time of {stage} is computed from its host time" in copied_clock(records(device, HOST, stage))


def test_a_copy_is_found_beside_a_few_interrupts():
    device = HOST - 0.0002
    device[3] -= 4.0
    assert copied_clock(records(device, HOST))


def test_a_device_clock_is_none():
    assert copied_clock(records(HOST - LATE, HOST)) is None
    assert copied_clock(records(np.full(12, 80.0) - LATE, np.full(12, 80.0))) is None
    assert copied_clock([]) is None


def test_few_readings_say_nothing():
    assert copied_clock(records(HOST[: MIN_READINGS - 1], HOST[: MIN_READINGS - 1])) is None
    assert copied_clock(records(HOST[:MIN_READINGS], HOST[:MIN_READINGS])) is not None


def test_the_limit_is_that_of_the_clock():
    device = HOST - LATE / 1000
    assert copied_clock(records(device, HOST)) is not None
    assert copied_clock(records(device, HOST), EXACT_MS) is None
