"""Check ``scenes-apart``: the first scene, a second one and the first again, each with results of its own.

The second scene has the question, the sizes and the number of frames of the first, so that a result that was kept from
another scene, by path, shape, ids or a part of the pixels, is found. Nothing is compared with an expected cache: equal
input has to give equal results, and every frame, pixel and event has to matter.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from unfuse.features import Features
from unfuse.records.verification_file import CheckResult
from unfuse.samples import Sample
from unfuse.samples.variants import equal_frames, inverted, with_exchange, with_frames, with_square
from unfuse.staged_model import StagedModel
from unfuse.stages import Loaded, Prepared, Sampling
from unfuse.verification.checks import PATHS_CAP, Subject
from unfuse.verification.result import judged, skipped
from unfuse.verification.scene_files import file_faults

_EXPECTED: Final = (
    "first, second and first scene: own frames, pixels, features and logits; every frame and pixel matters"
)
_FURTHER_QUESTIONS: Final = "What moves, and where does it go?", "Is the camera moving?"
"""The first one that differs from the question of the scene is asked."""
_MOST_FRAMES: Final = 8
"""Frames of which a pixel is changed, evenly spaced."""
_TOKENS: Final = 6
_SHOWN: Final = 4
_NEAR: Final = 0.1
"""Features of a batch may differ from those alone by this share of the distance between two scenes."""


def scenes_apart(s: Subject, others: Sequence[Sample] = ()) -> CheckResult:
    """Run the scenes A, B, A through every stage.

    Args:
        s: the first scene.
        others: other samples of the dataset, beside the scene that is derived from the first. Samples of the same
            media, with other questions, are left out.
    """
    loaded = s.model.load(s.sample)
    if not loaded.frames:
        return skipped("scenes-apart", "the sample has no media", expected=_EXPECTED)
    with tempfile.TemporaryDirectory(prefix="unfuse-scenes-") as folder:
        faults = list(dict.fromkeys([*_faults(s, loaded, others), *file_faults(s, loaded, Path(folder))]))
    shown = faults[:_SHOWN] + ([f"and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else [])
    cap = PATHS_CAP[s.model.dtype]
    return judged(
        "scenes-apart",
        not faults,
        expected=_EXPECTED,
        observed="; ".join(shown) or f"apart, with {len(loaded.frames)} frames of each scene",
        tolerance=f"frames, pixels and features exact; logits of the fused call and of a cached prefix: {cap}",
    )


def _faults(s: Subject, loaded: Loaded, others: Sequence[Sample]) -> Iterator[str]:
    derived = with_frames(s.sample, inverted(loaded.frames))
    first = _visit(s, s.sample)
    yield from first.faults("the first scene")
    own = [each for each in others if s.model.media_sha256(each) != loaded.media_sha256]
    for other in (derived, *(replace(each, question=loaded.question) for each in own)):
        visited = _visit(s, other)
        yield from visited.faults("the second scene")
        if other is derived:
            yield from _same_frames(first, visited)
        yield from _not_apart(first, visited)
        again = _visit(s, s.sample)
        yield from again.faults("the first scene again")
        yield from _not_equal(first, again)
        yield from _swapped(s.model, first, visited)
    yield from _blind(s, loaded, first)


@dataclass(frozen=True, slots=True)
class _Visit:
    """One scene on its way through the stages."""

    model: StagedModel
    loaded: Loaded
    prepared: Prepared
    features: Features
    tokens: int

    def faults(self, name: str) -> Iterator[str]:
        """Yield results of stage 4 that belong to another scene: alone, after a cached prefix, and decoded."""
        model, cap = self.model, PATHS_CAP[self.model.dtype]
        prefilled = model.prefill(self.prepared, self.features)
        logits = prefilled.logits.clone()
        answer = model.decode(prefilled, self.tokens).token_ids
        (fused,) = model.adapter.fused_generate([self.prepared], max_new_tokens=1, sampling=Sampling(), logits=True)
        if fused.logits is not None and not _within(logits, fused.logits[0], cap):
            yield f"prefill: logits of {name} are not those of its fused call"
        if answer and not _likely(model.engine.score(prefilled, answer), answer, cap):
            yield f"decode: tokens of {name} are not those of its logits"
        question = next(text for text in _FURTHER_QUESTIONS if text != self.prepared.question)
        further = model.adapter.tokenize(question, self.features)
        expected = model.prefill(further, self.features).logits.clone()
        if torch.equal(expected, logits):
            yield f"prefill: another question about {name} gives equal logits"
        for prompt, uncached in ((self.prepared, logits), (further, expected), (self.prepared, logits)):
            if not _within(model.prefill(prompt, self.features, reuse=True).logits, uncached, cap):
                yield f"prefill: a cached prefix changes the logits of {name}"


def _visit(s: Subject, sample: Sample) -> _Visit:
    loaded = s.model.load(sample)
    prepared = s.model.preprocess(loaded)
    features = s.model.encode(prepared).clone()
    return _Visit(s.model, loaded, prepared, features, min(s.max_new_tokens, _TOKENS))


def _same_frames(first: _Visit, second: _Visit) -> Iterator[str]:
    """Yield the frames of the first scene that a scene of other frames has."""
    pairs = zip(first.loaded.frames, second.loaded.frames, strict=False)
    if same := [str(index) for index, (a, b) in enumerate(pairs) if equal_frames([a], [b])]:
        yield f"load: the second scene has the first one's frame {', '.join(same)}"


def _not_apart(first: _Visit, second: _Visit) -> Iterator[str]:
    """Yield the stages that give two scenes equal results. Windows of one recording may share some frames."""
    if first.loaded.media_sha256 == second.loaded.media_sha256:
        yield "load: both scenes have one media hash"
    if equal_frames(first.loaded.frames, second.loaded.frames):
        return
    if _equal(first.prepared.pixel_values, second.prepared.pixel_values):
        yield "preprocess: the second scene has the first one's pixels"
    if _equal(first.features.tensor, second.features.tensor):
        yield "encode: the second scene has the first one's features"


def _not_equal(first: _Visit, again: _Visit) -> Iterator[str]:
    """Yield the stages whose results of one scene changed."""
    if not equal_frames(first.loaded.frames, again.loaded.frames):
        yield "load: the first scene has other frames after the second"
    if not _equal(first.prepared.pixel_values, again.prepared.pixel_values):
        yield "preprocess: the first scene has other pixels after the second"
    if not _equal(first.prepared.input_ids, again.prepared.input_ids):
        yield "preprocess: the first scene has other token ids after the second"
    if first.features.digest != again.features.digest:
        yield "encode: the first scene has other features after the second"


def _swapped(model: StagedModel, first: _Visit, second: _Visit) -> Iterator[str]:
    """Yield whether a batch gives a scene the features of another."""
    scenes = (first, second)
    batch = model.encode_batch([scene.prepared for scene in scenes])
    for index, (found, own) in enumerate(zip(batch, scenes, strict=True)):
        other = scenes[1 - index].features.tensor
        near = _distance(found.tensor, own.features.tensor)
        if own.features.tensor.shape == other.shape and not near <= _NEAR * _distance(own.features.tensor, other):
            yield f"encode_batch: scene {index + 1} of 2 has not its own features"


def _blind(s: Subject, loaded: Loaded, first: _Visit) -> Iterator[str]:
    """Yield changes of the frames that pixels or features do not show."""
    frames = loaded.frames
    last = len(frames) - 1
    indices = dict.fromkeys(round(i * last / (_MOST_FRAMES - 1)) for i in range(_MOST_FRAMES))
    changes = {f"one square of frame {index}": with_square(frames, index, seed=index) for index in indices}
    changes["two exchanged squares"] = with_exchange(frames, last) or with_square(frames, last, seed=last + 1)
    visits = {name: (_visit(s, with_frames(s.sample, changed)), first) for name, changed in changes.items()}
    if last:
        # The frames of a scene may look alike where a crop leaves them, so one of them is marked.
        marked = with_square(frames, 0)
        one, other = (_visit(s, with_frames(s.sample, each)) for each in (marked, list(reversed(marked))))
        visits["the order of the frames"] = one, other
    unseen: dict[str, list[str]] = {"preprocess": [], "encode": []}
    for name, (one, other) in visits.items():
        if _equal(one.prepared.pixel_values, other.prepared.pixel_values):
            unseen["preprocess"].append(name)
        if _equal(one.features.tensor, other.features.tensor):
            unseen["encode"].append(name)
    if (exchanged := _exchanged(first.prepared)) and _equal(s.model.encode(exchanged).tensor, first.features.tensor):
        unseen["encode"].append("two exchanged pixel values")
    for stage, names in unseen.items():
        if names:
            yield f"{stage}: no effect of {_shortened(names)}"
    if _visit(s, s.sample).features.digest != first.features.digest:
        yield "encode: the first scene has other features after changes of its pixels"


def _exchanged(prepared: Prepared) -> Prepared | None:
    """Return a scene with two pixel values of one row exchanged: no sum, mean or histogram changes.

    Return None if each row has one value only.
    """
    pixels = prepared.pixel_values.clone()
    rows = pixels.view(-1, pixels.shape[-1])
    uneven = (rows != rows[:, :1]).any(dim=1).nonzero()[:, 0]
    if not len(uneven):
        return None
    row = rows[uneven[len(uneven) // 2]]
    at = int((row != row[0]).nonzero()[0])
    row[[0, at]] = row[[at, 0]]
    inputs = {name: pixels if value is prepared.pixel_values else value for name, value in prepared.inputs.items()}
    digest = hashlib.sha256(f"{prepared.media_sha256}, two values exchanged".encode()).hexdigest()
    return replace(prepared, pixel_values=pixels, inputs=inputs, media_sha256=digest)


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} other changes" if len(names) > 2 else "")


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.float() - other.float()).norm()) if one.shape == other.shape else float("inf")


def _within(logits: torch.Tensor, expected: torch.Tensor, cap: float) -> bool:
    return bool((logits - expected).abs().max() <= cap)


def _likely(rows: torch.Tensor, token_ids: Sequence[int], cap: float) -> bool:
    """Return whether each token has the largest logit of its row, up to ``cap``."""
    chosen = rows[torch.arange(len(rows), device=rows.device), torch.tensor(token_ids, device=rows.device)]
    return bool((rows.max(dim=-1).values - chosen <= cap).all())
