"""Positions under the roofline, from numbers made up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from unfuse.records.schema import Probes, SampleRecord, StageTime
from unfuse.records.work_records import Ceilings, StageWork
from unfuse.report.roofline import roofline

PROBES = Probes(
    work={
        "encode": StageWork(flops=4_000_000, least_bytes=1000),
        "decode": StageWork(flops=100, least_bytes=3_000_000),
    },
    work_sample_id="one",
    ceilings=Ceilings(bytes_per_s=1e9, flops_per_s=1e9),
)
RECORD = SampleRecord(
    sample_id="one",
    status="ok",
    stages={"encode": StageTime(host_ms=8.0, device_ms=5.0), "decode": StageTime(host_ms=12.0)},
)


def test_floor_and_share_of_each_stage():
    found = roofline(PROBES, [replace(RECORD, sample_id="other"), RECORD])
    encode, decode = found["encode"], found["decode"]
    assert (encode.bound, decode.bound) == ("arithmetic", "memory")
    assert encode.floor_ms == pytest.approx(4.0)
    assert decode.floor_ms == pytest.approx(3.0)
    # The device's own time if there is one, else the host's.
    assert encode.reached_pct == pytest.approx(80.0)
    assert decode.reached_pct == pytest.approx(25.0)


@pytest.mark.parametrize(
    "probes", [Probes(), replace(PROBES, ceilings=None), replace(PROBES, work_sample_id="absent")], ids=str
)
def test_no_roofline_where_nothing_was_counted(probes):
    assert roofline(probes, [RECORD]) == {}


def test_a_stage_without_work_has_no_roofline():
    nothing = replace(PROBES, work={"decode": StageWork(flops=0, least_bytes=0)})
    assert roofline(nothing, [RECORD]) == {}
