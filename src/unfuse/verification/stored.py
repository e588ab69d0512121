"""Check ``store-hit``: features out of a store are those that encoding gives, and only ever those.

It has a store of its own in a temporary folder, and does to it what happens to stores: an entry is damaged, one of
another model lies under this one's name, one is asked for another scene.
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
from unfuse.staged_model import StagedModel
from unfuse.verification.checks import Subject
from unfuse.verification.result import CheckResult, judged, skipped
from unfuse.verification.watch import watch_vision

_MAX_TOKENS: Final = 16
"""The logits are held as well, so a few tokens say it."""
_EXPECTED: Final = "a hit has the digest, logits and tokens of encoding and calls no tower; unsound entries are refused"
_OTHER: Final = "0" * 64


def store_hit(s: Subject, open_store: Callable[[Path], FeatureStore] = FeatureStore) -> CheckResult:
    """A hit equals a miss by digest, logits and tokens, at no call of the tower; what is not sound is encoded again."""
    if not s.prepared.media_tokens:
        return skipped("store-hit", "the sample shows nothing that could be kept", expected=_EXPECTED)
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
    fresh = model.encode(s.prepared)
    origin = fresh.provenance
    if model.media_sha256(s.sample) != origin.media_sha256:
        faults.append("the hash of the media without decoding is ANOTHER than the one of load")
    _, early = open_store(folder).features(model, s.prepared)

    # A store opened anew, as another process would.
    store = open_store(folder)
    with watch_vision(model.adapter.vision_modules()) as calls:
        kept, hit = store.features(model, s.sample)
    if early or not hit:
        faults.append(f"first pass {_said(early)}, second pass {_said(hit)}")
    if not calls.none:
        faults.append(f"the second pass ENCODED ({calls})")
    faults += [f"a hit has {what}" for what in _differences(s, kept, fresh)]

    place = store.place(origin)
    for what, spoil in (("a damaged entry", _flip), ("an entry of another model", partial(_swap, store, fresh))):
        if not place.is_file():
            faults.append(f"nothing in the place of an entry, to make {what} of")
            continue
        spoil(place)
        again, hit = open_store(folder).features(model, s.prepared)
        if hit or again.clone().digest != fresh.digest:
            faults.append(f"{what} was BELIEVED")
        elif not open_store(folder).features(model, s.prepared)[1]:
            faults.append(f"after {what} nothing is kept")
    if store.get(origin.model_fingerprint, _OTHER, origin.dtype) is not None:
        faults.append("another scene was answered with this one")
    if store.get(_OTHER, origin.media_sha256, origin.dtype) is not None:
        faults.append("another model was answered with this one's features")
    return faults


def _differences(s: Subject, kept: Features, fresh: Features) -> list[str]:
    """What is not the same of the two; ``fresh`` was never in a store."""
    found = []
    if kept.clone().digest != fresh.clone().digest:
        apart = float((kept.tensor.float() - fresh.tensor.float()).abs().max()) if _same_shape(kept, fresh) else "?"
        found.append(f"another digest ({apart} apart)")
    if kept.provenance != fresh.provenance or dict(kept.layout) != dict(fresh.layout):
        found.append("another provenance or layout")
    (ours, mine), (theirs, other) = (_answer(s.model, s, features) for features in (kept, fresh))
    if not torch.equal(ours, theirs):
        found.append(f"other logits ({float((ours - theirs).abs().max()):.2g} apart)")
    if mine != other:
        found.append("other tokens")
    return found


def _same_shape(kept: Features, fresh: Features) -> bool:
    return kept.tensor.shape == fresh.tensor.shape


def _answer(model: StagedModel, s: Subject, features: Features) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Without the sample's pixels, as after a hit."""
    prefilled = model.prefill(model.adapter.tokenize(s.prepared.question, features), features)
    return prefilled.logits.clone(), model.decode(prefilled, min(s.max_new_tokens, _MAX_TOKENS)).token_ids


def _flip(place: Path) -> None:
    """One bit of the last value."""
    data = bytearray(place.read_bytes())
    data[-1] ^= 1
    place.write_bytes(data)


def _swap(store: FeatureStore, features: Features, place: Path) -> None:
    """A sound entry of another model, under this one's name."""
    foreign = Features(
        features.tensor.flip(0).contiguous(),
        replace(features.provenance, model_fingerprint=_OTHER),
        features.layers,
        features.layout,
    )
    store.put(foreign)
    store.place(foreign.provenance).replace(place)


def _said(hit: bool) -> str:
    return "a hit" if hit else "a miss"
