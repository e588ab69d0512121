"""The options of every command are frozen."""

from __future__ import annotations

from unfuse.cli import cli


def test_options_are_frozen():
    """The command line cannot grow unnoticed."""
    options = {name: sorted(p.name for p in verb.params) for name, verb in cli.commands.items()}
    assert options == {
        "ask": [
            "device", "draft_tokens", "dtype", "engine", "events", "history", "max_new_tokens", "model", "questions",
            "seed", "speculate", "store", "store_gib", "temperature", "time_unit",
        ],
        "bench": [
            "balance_seconds", "dataset", "device", "draft_tokens", "dtype", "energy_seconds", "engine", "history",
            "max_new_tokens", "max_samples", "models", "num_warmups", "output", "output_length", "profile", "protocol",
            "resume", "reuse", "seed", "speculate", "strict", "temperature",
        ],
        "compare": [
            "baseline", "baseline_dir", "fail_on_regression", "form", "list_baselines", "noise_threshold", "replace",
            "runs", "save_baseline",
        ],
        "dataset": [],
        "doctor": [],
        "export": ["output", "replace", "runs"],
        "report": ["output", "runs"],
        "run": [
            "capacity", "dataset", "device", "devices", "dtype", "encode_batch", "engine", "max_new_tokens",
            "max_samples", "model", "output", "output_length", "questions", "ray", "ray_pools", "resume",
            "scene_seconds", "seed", "store", "store_gib", "temperature", "workers",
        ],
        "serve": [
            "device", "dtype", "engine", "host", "max_concurrent", "max_upload_mb", "model", "no_token", "port",
            "queue", "scenes_mb", "store", "store_gib", "timeout_s", "token_file",
        ],
        "store": [],
        "verify": ["dataset", "device", "dtype", "engine", "events", "golden", "max_new_tokens", "model", "output"],
    }  # fmt: skip
    parts = cli.commands["dataset"].commands
    assert {name: sorted(p.name for p in verb.params) for name, verb in parts.items()} == {
        "build": [
            "events", "frames", "max_windows", "out", "questions", "rectify", "source", "stride", "time_unit",
            "window", "workers",
        ],
        "check": ["folder"],
        "demo": ["count", "out", "seed", "workers"],
        "info": ["folder", "picture"],
    }  # fmt: skip
