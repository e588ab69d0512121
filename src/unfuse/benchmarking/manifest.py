"""Manifest of a run (``run.json``): command, model, data, environment and clock, recorded before the start."""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unfuse.benchmarking.settings import BenchSettings
from unfuse.measure.clock import edge_cost_ms, resolution_ns
from unfuse.measure.environment import environment
from unfuse.measure.timers import timer_for
from unfuse.records import Isolation, Manifest
from unfuse.samples import Dataset
from unfuse.staged_model import StagedModel


def make_manifest(
    model: StagedModel, dataset: Dataset, settings: BenchSettings, protocol: str, isolation: Isolation
) -> Manifest:
    """Return everything that a run depends on."""
    now = datetime.now(UTC)
    return Manifest(
        run_id=f"{now:%Y%m%dT%H%M%S}-{Path(model.name).name.replace(':', '-')}",
        created=now.isoformat(timespec="seconds"),
        command=own_command(),
        protocol=protocol,
        config=settings.to_config(),
        model=describe_model(model),
        dataset={"path": dataset.name, "sha256": dataset.sha256(), "num_samples": len(dataset.samples)},
        environment={**environment(model.device), "isolation": asdict(isolation)},
        clock={
            "resolution_ns": resolution_ns(),
            "edge_cost_ms": edge_cost_ms(timer_for(model.device)),
            "how": "median of empty stages on an idle device",
        },
    )


def own_command() -> tuple[str, ...]:
    """Return the process's command; the program by its name, because its path says nothing about the run."""
    program = Path(sys.argv[0]).name
    return ("unfuse" if program == "__main__.py" else program, *sys.argv[1:])


def describe_model(model: StagedModel) -> dict[str, Any]:
    """Return a model as ``run.json`` records it."""
    return {
        "name": model.name,
        "family": model.family,
        "fingerprint": model.fingerprint,
        "settings_sha256": model.settings_sha256,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "engine": model.engine.name,
        "end_ids": list(model.adapter.end_ids),
        "max_positions": _max_positions(model),
        "notes": list(model.notes),
    }


def _max_positions(model: StagedModel) -> int | None:
    """Return the number of positions of the decoder by its config; None if the config does not say it."""
    config: Any = getattr(model.adapter.model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(text, "max_position_embeddings", None)
