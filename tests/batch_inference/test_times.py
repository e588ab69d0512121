"""Which stage is reported as the bottleneck of a run."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unfuse.batch_inference.times import Stopwatch, Times, bottleneck, sum_times

SECONDS = st.floats(0, 1000)
TIMES = st.builds(
    Times, wall_s=st.floats(0.001, 1000), devices=st.integers(1, 8), workers=st.integers(1, 64), load_s=SECONDS,
    preprocess_s=SECONDS, encode_s=SECONDS, prefill_s=SECONDS, decode_s=SECONDS, write_s=SECONDS,
    store_s=SECONDS, room_wait_s=SECONDS, scene_wait_s=SECONDS,
)  # fmt: skip


def test_stage_4_is_the_bottleneck():
    times = Times(
        wall_s=10, workers=4, load_s=6, preprocess_s=4, encode_s=1, prefill_s=2.3, decode_s=6, room_wait_s=28.4
    )
    assert bottleneck(times).line(times) == (
        "Bottleneck: Stage 4 (device busy 93% of the time; load and preprocess waited 71% for room)"
    )


def test_workers_are_the_bottleneck():
    times = Times(wall_s=10, workers=2, load_s=4, preprocess_s=15, encode_s=1, prefill_s=2, decode_s=3, scene_wait_s=4)
    assert bottleneck(times).line(times) == (
        "Bottleneck: preprocess (workers busy 95% of the time; 2 workers; the device waited 40% for scenes)"
    )


def test_the_disk_is_the_bottleneck():
    times = Times(wall_s=10, write_s=9, decode_s=5)
    assert bottleneck(times).line(times).startswith("Bottleneck: writing answers (answers file busy 90%")


@given(TIMES)
def test_the_bottleneck_has_the_largest_busy_share(times):
    found = bottleneck(times)
    assert found.busy == max(times.workers_busy, times.device_busy, times.write_busy, times.store_busy)
    parts = {
        "load": times.load_s, "preprocess": times.preprocess_s, "encode": times.encode_s,
        "Stage 4": times.prefill_s + times.decode_s, "writing answers": times.write_s,
        "keeping scenes": times.store_s,
    }  # fmt: skip
    groups = {
        "workers": ("load", "preprocess"), "device": ("encode", "Stage 4"), "answers file": ("writing answers",),
        "store": ("keeping scenes",),
    }  # fmt: skip
    assert parts[found.stage] == max(parts[name] for name in groups[found.where])
    assert "\n" not in found.line(times)


@given(TIMES, st.integers(2, 10))
def test_more_workers_doing_the_same_are_less_busy(times, more):
    wider = Times(**{**{n: getattr(times, n) for n in Times.__dataclass_fields__}, "workers": times.workers * more})
    assert wider.workers_busy == pytest.approx(times.workers_busy / more)
    assert wider.device_busy == times.device_busy


@given(st.lists(TIMES, min_size=1, max_size=4))
def test_several_devices_are_as_busy_as_each(parts):
    whole = sum_times(parts, wall_s=10.0, write_s=1.0)
    assert whole.wall_s == 10.0
    assert whole.write_s == 1.0
    assert whole.devices == sum(part.devices for part in parts)
    assert whole.decode_s == pytest.approx(sum(part.decode_s for part in parts))
    same = sum_times([parts[0]] * 3, wall_s=parts[0].wall_s, write_s=0.0)
    assert same.device_busy == pytest.approx(parts[0].device_busy)
    assert same.workers_busy == pytest.approx(parts[0].workers_busy)


def test_a_stopwatch_on_the_host():
    watch = Stopwatch(torch.device("cpu"))
    assert watch.seconds() == 0
    with watch.running():
        torch.randn(200, 200) @ torch.randn(200, 200)
    once = watch.seconds()
    assert once > 0
    with pytest.raises(ValueError, match="x"), watch.running():
        raise ValueError("x")
    assert watch.seconds() > once
