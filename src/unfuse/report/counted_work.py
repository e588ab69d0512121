"""Compare the executed work of the stages with the expected work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from unfuse.records.work_records import CountedWork, StageProducts

WORK_PCT: Final = 2.0
"""Share of the expected work, of a stage or of one key of ``StageProducts``, that may be extra or missing."""
_SMALL_PCT: Final = 0.2
"""Share of the stage's work that a key may differ by in any case."""
_HOST_STAGES: Final = ("load", "preprocess")
"""Stages that run nothing of the model; their limit is the share of ``encode``."""
ATTENTION: Final = "attention"


def work_problems(counted: CountedWork) -> list[str]:
    """Return a sentence for each stage that executes more or less work than expected."""
    problems = []
    for stage, found in counted.stages.items():
        of = counted.stages.get("encode", found) if stage in _HOST_STAGES else found
        differing = _differing(found, total(of.expected), attention_counted=counted.attention_counted)
        if differing:
            kind = "extra" if total(found.executed) > total(found.expected) else "too little"
            problems.append(f"{stage} executes {kind} work: {'; '.join(_text(found, key) for key in differing[:2])}")
    if counted.features_in_prompt is False:
        problems.append("prefill changes the features before they enter the prompt")
    return problems


def total(work: Mapping[str, int]) -> int:
    """Return the operations of all keys."""
    return sum(work.values())


def _differing(found: StageProducts, of: int, *, attention_counted: bool) -> list[str]:
    """Return the keys with extra or missing work, the largest difference first.

    Args:
        found: the stage.
        of: expected work that the limits are a share of.
        attention_counted: False if attention may be missing.
    """
    keys = found.expected.keys() | found.executed.keys()
    differences = {key: found.executed.get(key, 0) - found.expected.get(key, 0) for key in keys}
    if not attention_counted:
        differences[ATTENTION] = max(differences.get(ATTENTION, 0), 0)
    whole = abs(sum(differences.values())) > of * WORK_PCT / 100
    limits = {key: max(found.expected.get(key, 0) * WORK_PCT, of * _SMALL_PCT) / 100 for key in differences}
    differing = [key for key, value in differences.items() if abs(value) > limits[key]]
    if whole and not differing:
        differing = list(differences)
    return sorted(differing, key=lambda key: -abs(differences[key]))


def _text(found: StageProducts, key: str) -> str:
    largest = f" ({found.largest[key]})" if key in found.largest else ""
    return f"{key}: {found.executed.get(key, 0) / 1e9:.4g} of {found.expected.get(key, 0) / 1e9:.4g} GFLOP{largest}"
