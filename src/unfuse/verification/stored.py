"""Check ``store-hit``: features out of a store equal those of encoding, and an unsound entry is refused.

It opens a store of its own in a temporary folder and breaks it: an entry is damaged, an entry of another model lies
under the model's name, and features of another scene are requested.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import torch

from unfuse.feature_store import FeatureStore
from unfuse.features import Features
from unfuse.records.verification_file import CheckResult
from unfuse.staged_model import StagedModel
from unfuse.verification.checks import Subject
from unfuse.verification.result import judged, skipped
from unfuse.verification.watch import watch_vision

_MAX_TOKENS: Final = 16
"""The logits are compared as well, so a few tokens are enough."""
_EXPECTED: Final = "a hit has the digest, logits and tokens of encoding and calls no tower; unsound entries are refused"
_OTHER: Final = "0" * 64


def store_hit(s: Subject, open_store: Callable[[Path], FeatureStore] = FeatureStore) -> CheckResult:
    """Check that a hit equals encoding by digest, logits and tokens without a call of the tower."""
    if not s.prepared.media_tokens:
        return skipped("store-hit", "the sample has no media to cache", expected=_EXPECTED)
    with tempfile.TemporaryDirectory(prefix="unfuse-store-") as folder:
        faults = _faults(s, Path(folder), open_store)
    return judged(
        "store-hit",
        not faults,
        expected=_EXPECTED,
        observed="; ".join(faults)
        or "equal on a hit, without the tower; damaged, another model's and another scene's refused and encoded again",
    )


def _faults(s: Subject, folder: Path, open_store: Callable[[Path], FeatureStore]) -> list[str]:
    model, faults = s.model, []
    encoded = model.encode(s.prepared)
    origin = encoded.provenance
    if model.media_sha256(s.sample) != origin.media_sha256:
        faults.append("the hash of the media without decoding is ANOTHER than the one of load")
    _, first_hit = open_store(folder).features(model, s.prepared)

    # Open the store again, as another process would.
    store = open_store(folder)
    with watch_vision(model.adapter.vision_modules()) as calls:
        cached, hit = store.features(model, s.sample)
    if first_hit or not hit:
        faults.append(f"first pass {_hit_or_miss(first_hit)}, second pass {_hit_or_miss(hit)}")
    if not calls.is_empty:
        faults.append(f"the second pass ENCODED ({calls})")
    faults += [f"a hit has {what}" for what in _differences(s, cached, encoded)]

    entry = store.entry_path(origin)
    for what, spoil in (("a damaged entry", _flip), ("an entry of another model", partial(_swap, store, encoded))):
        if not entry.is_file():
            faults.append(f"no file of the entry, to make {what} of")
            continue
        spoil(entry)
        again, hit = open_store(folder).features(model, s.prepared)
        if hit or again.clone().digest != encoded.digest:
            faults.append(f"{what} was ACCEPTED")
        elif not open_store(folder).features(model, s.prepared)[1]:
            faults.append(f"after {what} nothing is cached")
    if store.get(origin.model_fingerprint, _OTHER, origin.dtype) is not None:
        faults.append("another scene was answered with this one")
    if store.get(_OTHER, origin.media_sha256, origin.dtype) is not None:
        faults.append("another model was answered with this one's features")
    return faults


def _differences(s: Subject, cached: Features, encoded: Features) -> list[str]:
    """Name the differences between features out of the store and features that were never in it."""
    found = []
    if cached.clone().digest != encoded.clone().digest:
        same_shape = cached.tensor.shape == encoded.tensor.shape
        difference = float((cached.tensor.float() - encoded.tensor.float()).abs().max()) if same_shape else "?"
        found.append(f"another digest (values differ by {difference})")
    if cached.provenance != encoded.provenance or dict(cached.layout) != dict(encoded.layout):
        found.append("another provenance or layout")
    (logits, tokens), (expected, expected_tokens) = (_answer(s.model, s, features) for features in (cached, encoded))
    if not torch.equal(logits, expected):
        found.append(f"other logits (they differ by {float((logits - expected).abs().max()):.2g})")
    if tokens != expected_tokens:
        found.append("other tokens")
    return found


def _answer(model: StagedModel, s: Subject, features: Features) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Return logits and tokens without the sample's pixels, as after a hit."""
    prefilled = model.prefill(model.adapter.tokenize(s.prepared.question, features), features)
    return prefilled.logits.clone(), model.decode(prefilled, min(s.max_new_tokens, _MAX_TOKENS)).token_ids


def _flip(entry: Path) -> None:
    """Flip one bit of the last value."""
    data = bytearray(entry.read_bytes())
    data[-1] ^= 1
    entry.write_bytes(data)


def _swap(store: FeatureStore, features: Features, entry: Path) -> None:
    """Replace an entry by a sound entry of another model."""
    foreign = Features(
        features.tensor.flip(0).contiguous(),
        replace(features.provenance, model_fingerprint=_OTHER),
        features.layers,
        features.layout,
    )
    store.put(foreign)
    store.entry_path(foreign.provenance).replace(entry)


def _hit_or_miss(hit: bool) -> str:
    return "a hit" if hit else "a miss"
