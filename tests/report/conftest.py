"""Records and manifests of synthetic runs, with statistics that can be checked by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from unfuse.records import STAGES, Manifest, SampleRecord, StageTime

SEED_MS = (8.5, 17.0, 28.5, 21.8, 928.2)
"""The seed's expected sample: load, preprocess, encode, and its Stage 4 split in two."""


@pytest.fixture
def manifest() -> Manifest:
    return Manifest(
        run_id="r",
        created="2026-01-23T00:00:00+00:00",
        command=("unfuse", "bench", "demo", "--output", "my runs/a"),
        protocol="decoupled",
        config={"max_new_tokens": 512, "seed": 0},
        model={"name": "demo", "device": "cpu", "notes": ["random weights: timings only"]},
        dataset={"path": "data/demo", "sha256": "d" * 64, "num_samples": 6},
        environment={"code_version": {"unfuse": "0.1.0"}, "device_name": "a cpu"},
        clock={"edge_cost_ms": 0.1},
    )


@pytest.fixture
def make_record() -> Callable[..., SampleRecord]:
    def make(sample_id: str = "a", ms: Sequence[float] = SEED_MS, **changes: Any) -> SampleRecord:
        fields: dict[str, Any] = {
            "sample_id": sample_id,
            "status": "ok",
            "stages": {name: StageTime(host_ms=t) for name, t in zip(STAGES, ms, strict=True)},
            "spans": {"load.rasterise": StageTime(host_ms=3.0)},
            "e2e_host_ms": sum(ms),
            "e2e_same_tokens": True,
            "text_tokens": 47,
            "media_tokens": 70,
            "output_tokens": 512,
            "text": "a street",
        }
        return SampleRecord(**{**fields, **changes})

    return make


@pytest.fixture
def make_run(make_record: Callable[..., SampleRecord]) -> Callable[..., list[SampleRecord]]:
    def make(count: int = 6, **changes: Any) -> list[SampleRecord]:
        return [make_record(f"s{i}", **changes) for i in range(count)]

    return make
