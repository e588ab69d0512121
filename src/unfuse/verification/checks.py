"""The checks of a model on one sample. The tests hold a broken model against each of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import torch

from unfuse.features import Features
from unfuse.records.verification_file import CheckResult
from unfuse.samples import Sample
from unfuse.staged_model import StagedModel
from unfuse.stages import Prepared, Sampling
from unfuse.verification.result import judged
from unfuse.verification.watch import watch_vision

PATHS_CAP: Final = {torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}
"""Tolerance of the logits of one prompt on two paths: whole, or from a cached prefix."""
_MIN_EFFECT: Final = 1e-3
_GREEDY: Final = Sampling()


@dataclass(frozen=True, slots=True)
class Subject:
    """One sample, prepared for one model."""

    model: StagedModel
    sample: Sample
    prepared: Prepared
    max_new_tokens: int


def prepare_subject(model: StagedModel, sample: Sample, max_new_tokens: int) -> Subject:
    """Run stages 1 and 2 of a sample."""
    return Subject(model, sample, model.preprocess(model.load(sample)), max_new_tokens)


def encode_once(s: Subject) -> CheckResult:
    """Check that the vision side runs in ``encode`` as often as the adapter says, and never in Stage 4."""
    modules = s.model.adapter.vision_modules()
    with watch_vision(modules) as encoding:
        features = s.model.encode(s.prepared)
    with watch_vision(modules) as generating:
        s.model.decode(s.model.prefill(s.prepared, features), s.max_new_tokens)
        s.model.generate(s.prepared.question, features, max_new_tokens=2)
    expected = dict(s.model.adapter.vision_calls(s.prepared))
    ok = encoding.by_name == expected and generating.is_empty
    return judged(
        "encode-once",
        ok,
        expected=f"encode: {', '.join(f'{n} {c}' for n, c in expected.items())}; prefill and decode: none",
        observed=f"encode: {encoding}; prefill and decode: {generating}",
    )


def features_used(s: Subject) -> CheckResult:
    """Check that other features change the logits, also after a cached prefix, and that none are changed in place."""
    features = s.model.encode(s.prepared)
    other = _random_features(features)
    digest = _digest(features)
    logits = s.model.prefill(s.prepared, features).logits
    effect = float((s.model.prefill(s.prepared, other).logits - logits).abs().max())
    s.model.generate(s.prepared.question, features, max_new_tokens=s.max_new_tokens)
    unchanged = _digest(features) == digest
    # After a question about the first features, their cached prefix must not answer for the others.
    uncached = s.model.prefill(s.prepared, other).logits
    s.model.prefill(s.prepared, features, reuse=True)
    reused = s.model.prefill(s.prepared, other, reuse=True).logits
    difference = float((reused - uncached).abs().max())
    limit = PATHS_CAP[s.model.dtype]
    return judged(
        "features-used",
        effect > max(_MIN_EFFECT, limit) and unchanged and difference <= limit,
        expected="other features change the logits; features unchanged by generate; no stale prefix",
        observed=(
            f"logits change by {effect:.4g}; features {'unchanged' if unchanged else 'CHANGED'}; "
            f"after other features the prefix is {'current' if difference <= limit else 'STALE'} "
            f"(logits differ by {difference:.2g})"
        ),
        tolerance=f"effect: more than {max(_MIN_EFFECT, limit)}; prefix: at most {limit}",
    )


def backward_compatible(s: Subject) -> CheckResult:
    """Check that the fused call encodes, and writes equal tokens before and after the stages ran."""

    def fused_tokens() -> tuple[int, ...]:
        answer = s.model.adapter.fused_generate([s.prepared], max_new_tokens=s.max_new_tokens, sampling=_GREEDY)
        return answer[0].token_ids

    with watch_vision(s.model.adapter.vision_modules()) as calls:
        before = fused_tokens()
    features = s.model.encode(s.prepared)
    s.model.generate(s.prepared.question, features, max_new_tokens=s.max_new_tokens)
    after = fused_tokens()
    expected = s.model.adapter.vision_calls(s.prepared)
    encoded = all(calls.by_name[name] for name, count in expected.items() if count)
    same = "equal" if before == after else f"DIFFERENT ({before[:5]}... then {after[:5]}...)"
    return judged(
        "backward-compatible",
        bool(before) and before == after and encoded,
        expected="the fused generate encodes and writes equal tokens before and after the stages",
        observed=f"{len(before)} tokens before, {len(after)} after, {same}; "
        f"tower {'called' if encoded else 'NOT called'}",
    )


def _random_features(features: Features) -> Features:
    """Return random features with the shape, mean and deviation of ``features``."""
    generator = torch.Generator().manual_seed(0)

    def drawn(tensor: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(tensor.shape, generator=generator) * float(tensor.float().std())
        return (noise + float(tensor.float().mean())).to(tensor.device, tensor.dtype)

    provenance = replace(features.provenance, media_sha256="other features, for a check")
    return Features(drawn(features.tensor), provenance, tuple(map(drawn, features.layers)), features.layout)


def _digest(features: Features) -> str:
    # Of a copy, since a cached digest could hide a change that bypassed torch's version counter.
    return features.clone().digest
