"""Manifests and records that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from unfuse.records import Manifest, SampleRecord, StageTime


@pytest.fixture
def make_manifest() -> Callable[..., Manifest]:
    def make(**changes: Any) -> Manifest:
        fields: dict[str, Any] = {
            "run_id": "20260123T000000-demo",
            "created": "2026-01-23T00:00:00+00:00",
            "command": ("unfuse", "bench"),
            "protocol": "decoupled",
            "config": {"max_new_tokens": 64, "temperature": 0.0, "seed": 0, "output_length": None},
            "model": {
                "name": "demo",
                "fingerprint": "f" * 64,
                "family": "eventgpt",
                "dtype": "float32",
                "device": "cpu",
                "engine": "eager",
                "notes": ["random weights: timings only"],
            },
            "dataset": {"path": "data/demo", "sha256": "d" * 64, "num_samples": 3},
            "environment": {"code_version": {"unfuse": "0.1.0", "git_commit": "abc"}, "device_name": "a cpu"},
        }
        return Manifest(**{**fields, **changes})

    return make


@pytest.fixture
def make_record() -> Callable[..., SampleRecord]:
    def make(sample_id: str = "a", **changes: Any) -> SampleRecord:
        fields: dict[str, Any] = {
            "sample_id": sample_id,
            "status": "ok",
            "stages": {
                "load": StageTime(host_ms=8.5),
                "preprocess": StageTime(host_ms=17.0, device_ms=0.5),
                "encode": StageTime(host_ms=28.5, device_ms=28.0),
                "prefill": StageTime(host_ms=21.8, device_ms=21.0),
                "decode": StageTime(host_ms=928.2, device_ms=900.0),
            },
            "spans": {"load.rasterise": StageTime(host_ms=3.0)},
            "e2e_host_ms": 1004.5,
            "output_tokens": 3,
            "token_ids": (5, 6, 2),
            "text": "a street",
        }
        return SampleRecord(**{**fields, **changes})

    return make
