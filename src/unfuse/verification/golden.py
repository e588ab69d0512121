"""Check ``golden``: the stages give the outputs of the published code, stored in a folder.

``golden.json`` holds the cases (events file, query, frame hashes, input ids, new ids); ``golden.safetensors`` holds
``EVENTS.pixel_values``, ``EVENTS.event_features`` and ``EVENTS.qN.prefill_last_logits``. The recordings lie beside
them, or in ``../data/events``.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from unfuse.errors import InputError
from unfuse.records.verification_file import CheckResult
from unfuse.samples import Sample
from unfuse.staged_model import StagedModel
from unfuse.verification.result import judged

TOLERANCE: Final = 1e-4
"""Relative L2 norm of the difference of tensors; ids and frame hashes must be equal."""


@dataclass(frozen=True, slots=True)
class GoldenSet:
    """Reference outputs, read from a folder."""

    cases: tuple[dict[str, Any], ...]
    tensors: dict[str, torch.Tensor]
    recordings: tuple[Path, ...]
    """Recording of each case."""


def read_golden(folder: str | Path) -> GoldenSet:
    """Read a golden folder.

    Raises:
        InputError: incomplete or malformed.
    """
    root = Path(folder)
    try:
        cases = tuple(json.loads((root / "golden.json").read_text(encoding="utf-8"))["cases"])
        tensors = load_file(root / "golden.safetensors")
        recordings = tuple(_recording(root, case["events"]) for case in cases)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(
            str(root),
            found=f"no readable golden set ({error})",
            expected="golden.json and golden.safetensors",
        ) from None
    return GoldenSet(cases, tensors, recordings)


def golden(model: StagedModel, reference: GoldenSet) -> CheckResult:
    """Run every case through the stages, from the recording's file, and compare with its reference outputs."""
    largest = 0.0
    problems: list[str] = []
    queries: Counter[str] = Counter()
    for case, recording in zip(reference.cases, reference.recordings, strict=True):
        query = f"q{queries[recording.stem]}"
        where = f"{recording.stem} {query}"
        loaded = model.load(Sample.from_events(recording, case["query"]))
        if [hashlib.sha256(frame.tobytes()).hexdigest() for frame in loaded.frames] != case["frame_sha256"]:
            problems.append(f"{where}: other frames")
        prepared = model.preprocess(loaded)
        if prepared.input_ids[0].tolist() != case["input_ids"]:
            problems.append(f"{where}: other input ids")
        features = model.encode(prepared)
        prefilled = model.prefill(prepared, features)
        for name, tensor in (
            ("pixel_values", prepared.pixel_values),
            ("event_features", features.tensor),
            (f"{query}.prefill_last_logits", prefilled.logits),
        ):
            difference = _relative_difference(tensor, reference.tensors[f"{recording.stem}.{name}"])
            largest = max(largest, difference)
            if not difference <= TOLERANCE:
                problems.append(f"{where}: {name} differs by {difference:.2g}")
        expected_ids = case["generated_ids"]
        written = model.decode(prefilled, max(len(expected_ids), 48)).token_ids
        if list(written) != expected_ids:
            problems.append(f"{where}: other tokens")
        queries[recording.stem] += 1
    return judged(
        "golden",
        bool(reference.cases) and not problems,
        expected=f"{len(reference.cases)} cases equal to the published code",
        observed="; ".join(problems[:4])
        or f"{len(reference.cases)} cases equal, tensors differ by at most {largest:.1g}",
        tolerance=f"ids exact, tensors {TOLERANCE:g} relative",
    )


def _recording(root: Path, name: str) -> Path:
    for folder in (root, root / "events", root.parent / "data" / "events"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"no recording {name} beside it")


def _relative_difference(tensor: torch.Tensor, reference: torch.Tensor) -> float:
    if tensor.shape != reference.shape:
        return float("inf")
    difference = tensor.detach().float().cpu() - reference.float()
    return float(difference.norm() / reference.float().norm())
