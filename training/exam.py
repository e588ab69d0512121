"""Measure the accuracy on held-out scenes during training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import torch

from training.learner import Learner
from training.scenes import HEADS, Pool, class_targets
from training.turns import Tokens
from unfuse.samples.attributes import score_answer
from unfuse.samples.demo.dialogue import Turn, one_of_each
from unfuse.samples.demo.scenes import demo_scene

_BATCH: Final = 256
_LONGEST: Final = 64

_RowTurn = tuple[int, Turn]
"""Row of the pool, and one question about its scene."""


def head_accuracy(learner: Learner, pool: Pool, device: torch.device) -> dict[str, float]:
    """Return the share of scenes that each auxiliary head classifies correctly."""
    targets = torch.tensor([class_targets(demo_scene(seed)[1]) for seed in pool.seeds], device=device)
    with _evaluating(learner):
        found = torch.cat([learner.facts(part) for part in pool.pixels.split(_BATCH)])
    shares = (found == targets).float().mean(0).tolist()
    return {name: round(share, 4) for (name, _), share in zip(HEADS, shares, strict=True)}


def answer_accuracy(learner: Learner, pool: Pool, tokens: Tokens, device: torch.device) -> dict[str, list[int]]:
    """Count right and all attributes, by kind of question and attribute: one phrasing of each kind a scene."""
    right: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    by_length: dict[int, list[_RowTurn]] = defaultdict(list)
    for row, seed in enumerate(pool.seeds):
        for turn in one_of_each(demo_scene(seed)[1], seed):
            by_length[len(tokens.prompt(turn.question))].append((row, turn))
    with _evaluating(learner):
        features = torch.cat([learner.features(part) for part in pool.pixels.split(_BATCH)])
        for part in _batches(by_length.values()):
            ids = torch.tensor([tokens.prompt(turn.question) for _, turn in part], device=device)
            scenes = features[torch.tensor([row for row, _ in part], device=device)]
            new = learner.model.generate(
                input_ids=ids, event_features=scenes, max_new_tokens=_LONGEST, do_sample=False, pad_token_id=0
            )[:, ids.shape[1] :]
            for (_, turn), answer in zip(part, new.tolist(), strict=True):
                for (name, _), correct in score_answer(turn.answer, tokens.text(answer)).items():
                    right[f"{turn.kind}: {name}"][0] += correct
                    right[f"{turn.kind}: {name}"][1] += 1
    return dict(sorted(right.items()))


@contextmanager
def _evaluating(learner: Learner) -> Iterator[None]:
    """Disable gradients and compilation: shapes vary here."""
    learner.eval()
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        yield
    learner.train()


def _batches(groups: Iterable[Sequence[_RowTurn]]) -> Iterator[Sequence[_RowTurn]]:
    for rows in groups:
        for start in range(0, len(rows), _BATCH):
            yield rows[start : start + _BATCH]
