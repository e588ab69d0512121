"""What a run checked, row by row: each row can pass and fail, and says where it did not look."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from unfuse.report import summarise
from unfuse.report.checks import run_checks
from unfuse.runs import Manifest, Noise, Probes, SampleRecord, StageTime

MakeRun = Callable[..., list[SampleRecord]]
QUIET = Probes(
    noise=Noise(sample_id="s0", total_host_ms=(100.0, 101.0, 99.0), e2e_host_ms=(100.0, 101.0, 99.0)),
    encoder_calls_after_encode=0,
)
NAMES = ["samples", "answers", "same tokens", "stages add up", "encode once", "noise", "drift"]


def statuses(manifest: Manifest, records: list[SampleRecord], probes: Probes = QUIET) -> dict[str, str]:
    rows = run_checks(manifest, records, probes, summarise(manifest, records, probes))
    assert all(row.expected and row.observed for row in rows)
    return {row.name: row.status for row in rows}


def test_a_good_run_passes_all(manifest: Manifest, make_run: MakeRun) -> None:
    twelve = replace(manifest, dataset={"num_samples": 12})
    assert statuses(twelve, make_run(12)) == dict.fromkeys(NAMES, "pass")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("samples", {"status": "failed", "error": "no file", "stages": {}}),
        ("answers", {"output_tokens": 0}),
        ("same tokens", {"e2e_same_tokens": False}),
        ("stages add up", {"e2e_host_ms": 2000.0}),
    ],
)
def test_each_can_fail(manifest: Manifest, make_run: MakeRun, name: str, changes: dict[str, object]) -> None:
    records = [replace(record, **changes) for record in make_run(14)]
    noiseless = replace(QUIET, noise=None)
    assert statuses(replace(manifest, dataset={"num_samples": 14}), records, noiseless)[name] == "fail"


def test_encode_once_and_noise(manifest: Manifest, make_run: MakeRun) -> None:
    loud = Noise(sample_id="s0", total_host_ms=(100.0, 150.0, 60.0), e2e_host_ms=(100.0, 150.0, 60.0))
    found = statuses(manifest, make_run(), Probes(noise=loud, encoder_calls_after_encode=2))
    assert (found["encode once"], found["noise"]) == ("fail", "warn")


def test_drift_warns(manifest: Manifest, make_run: MakeRun) -> None:
    records = [
        replace(r, stages={**r.stages, "decode": StageTime(host_ms=900.0 + 10 * i)}) for i, r in enumerate(make_run(20))
    ]
    assert statuses(manifest, records)["drift"] == "warn"


def test_what_was_not_recorded_is_skipped(manifest: Manifest, make_run: MakeRun) -> None:
    """As in runs of the first schema, and in short ones."""
    found = statuses(manifest, make_run(e2e_same_tokens=None), Probes())
    assert {name for name, status in found.items() if status == "skip"} == {
        "same tokens", "encode once", "noise", "drift",
    }  # fmt: skip


def test_hooks_that_never_fired(manifest: Manifest, make_run: MakeRun) -> None:
    hooked = replace(manifest, protocol="hooked")
    times = {name: StageTime(host_ms=10.0) for name in ("load", "preprocess", "fused_generate")}
    blind = [replace(r, stages=times, spans={}, num_frames=5, e2e_host_ms=30.0) for r in make_run()]
    assert statuses(hooked, blind)["hooks fired"] == "fail"
    seen = [replace(r, spans={"fused_generate.tower": StageTime(host_ms=2.0)}) for r in blind]
    assert statuses(hooked, seen)["hooks fired"] == "pass"
