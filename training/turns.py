"""Draw questions and answers as token ids in worker processes, reproducibly for each step."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch.utils.data import Dataset

from training.scenes import FRAMES, class_targets, track_targets
from unfuse.models.eventgpt import EventGPTProcessor
from unfuse.models.eventgpt.prompt import build_prompt, tokenize_prompt
from unfuse.models.pretrained import from_pretrained
from unfuse.samples.demo.dialogue import draw_turns
from unfuse.samples.demo.scenes import MoverFacts, SceneFacts, demo_scene

_IGNORED: Final = -100
_MOST_TURNS: Final = 9
_MIRRORED: Final = {"left": "right", "right": "left"}
_CARELESS: Final = 0.15
"""Share of questions in lower case, and share without final punctuation."""


class Tokens:
    """Tokenizes prompts and answers, each distinct text once."""

    def __init__(self, checkpoint: Path):
        processor = from_pretrained(EventGPTProcessor, checkpoint)
        self._tokenizer: Any = processor.tokenizer
        self._placeholder = (self._tokenizer.convert_tokens_to_ids("<ev_patch>"),) * (FRAMES + processor.num_patches)
        self._prompts: dict[str, list[int]] = {}
        self._answers: dict[str, list[int]] = {}

    def prompt(self, question: str) -> list[int]:
        """Return the ids of a prompt, with the placeholder once per feature position."""
        if question not in self._prompts:
            self._prompts[question] = tokenize_prompt(
                build_prompt(question), self._tokenizer, placeholder=self._placeholder
            )
        return self._prompts[question]

    @cached_property
    def shared(self) -> list[int]:
        """Shared beginning of the prompts of all questions."""
        pairs = zip(self.prompt("What moves?"), self.prompt("Describe this scene."), strict=False)
        return [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]

    def answer(self, text: str) -> list[int]:
        """Return the ids of an answer with the end token."""
        if text not in self._answers:
            ids = self._tokenizer(text, add_special_tokens=False).input_ids
            self._answers[text] = [*ids, self._tokenizer.eos_token_id]
        return self._answers[text]

    def text(self, ids: list[int]) -> str:
        """Return the text up to the end token."""
        end = self._tokenizer.eos_token_id
        before_end = ids[: ids.index(end)] if end in ids else ids
        return str(self._tokenizer.decode(before_end, skip_special_tokens=True)).strip()


class Steps(Dataset[dict[str, torch.Tensor]]):
    """Data set of batches: item ``i`` is the batch of step ``i`` (scenes, questions, answers and targets of the heads).

    All questions about a scene share one row after the prompt's shared beginning, as many as fit. ``turn`` numbers the
    question of each position, so that no question attends to another; positions count as if each question were alone.
    """

    def __init__(self, checkpoint: Path, seeds: range, *, scenes: int, length: int, steps: int, seed: int):
        self._checkpoint = checkpoint
        self._seeds = seeds
        self._scenes, self._length, self._steps, self._seed = scenes, length, steps, seed

    @cached_property
    def _tokens(self) -> Tokens:
        return Tokens(self._checkpoint)

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng([self._seed, step])
        chosen = rng.choice(len(self._seeds), self._scenes, replace=False)
        size = self._scenes, self._length
        # Mirroring a scene and inverting its contrast augments the data at no cost.
        mirror, inverse = rng.integers(0, 2, (2, self._scenes)).astype(bool)
        ids, turn, position = (np.zeros(size, np.int64) for _ in range(3))
        labels = np.full(size, _IGNORED)
        classes, tracks = [], []
        shared = self._tokens.shared
        for row, index in enumerate(chosen):
            scene, facts = demo_scene(self._seeds[int(index)])
            mirrored = bool(mirror[row])
            facts = _mirrored(facts) if mirrored else facts
            classes.append(class_targets(facts))
            tracks.append(track_targets(scene, mirrored=mirrored))
            end = len(shared)
            ids[row, :end] = shared
            position[row, :end] = np.arange(end)
            number = 1
            for drawn in draw_turns(facts, rng, _MOST_TURNS):
                question = self._tokens.prompt(_careless(drawn.question, rng))[len(shared) :]
                answer = self._tokens.answer(drawn.answer)
                length = len(question) + len(answer)
                if end + length <= self._length:
                    span = slice(end, end + length)
                    ids[row, span] = question + answer
                    labels[row, end + len(question) : end + length] = answer
                    turn[row, span] = number
                    position[row, span] = len(shared) + np.arange(length)
                    end, number = end + length, number + 1
            turn[row, end:] = number
        arrays = {"scene": chosen, "input_ids": ids, "labels": labels, "turn": turn, "position": position}
        arrays |= {"mirror": mirror, "inverse": inverse}
        return {name: torch.from_numpy(array) for name, array in arrays.items()} | {
            "classes": torch.tensor(classes),
            "tracks": torch.tensor(tracks),
        }


def _mirrored(facts: SceneFacts) -> SceneFacts:
    movers = tuple(
        MoverFacts(m.shape, _MIRRORED.get(m.direction, m.direction), _MIRRORED.get(m.place, m.place))
        for m in facts.movers
    )
    return replace(facts, movers=movers, camera=_MIRRORED.get(facts.camera, facts.camera))


def _careless(question: str, rng: np.random.Generator) -> str:
    lower, unpunctuated = rng.uniform(size=2) < _CARELESS
    question = question.lower() if lower else question
    return question.rstrip("?.") if unpunctuated else question
