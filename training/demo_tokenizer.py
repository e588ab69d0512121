"""Trains the demo model's sentencepiece tokenizer from sentences made here; run it to remake the shipped file.

python training/demo_tokenizer.py src/unfuse/samples/demo_tokenizer.model
"""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from unfuse.models.eventgpt.prompt import SYSTEM
from unfuse.stages import DEFAULT_QUESTION

_SIZES = ("small", "large", "dark", "bright", "")
_THINGS = ("disc", "box", "car", "cyclist", "pedestrian", "tree", "sign", "building", "object")
_MOTIONS = (
    "moves",
    "drives",
    "turns",
    "falls",
    "rises",
    "crosses the road",
    "stands still",
    "speeds up",
    "slows down",
)
_WHERE = (
    "to the left",
    "to the right",
    "up",
    "down",
    "toward the camera",
    "away from the camera",
    "in the middle",
)
_QUESTIONS = (
    DEFAULT_QUESTION,
    "Describe in detail what happened in the scene.",
    "Are there any vehicles visible in the scene?",
    "How many objects are moving, and which way?",
    "Is the camera itself moving?",
    "Which object is the fastest?",
    "What shape does the moving object have?",
)


def sentences() -> Iterator[str]:
    """Every combination once, in a fixed order."""
    for question in _QUESTIONS:
        yield from [f"{SYSTEM} USER: \n{question} ASSISTANT:", question] * 20
    for size, thing, motion, where in itertools.product(_SIZES, _THINGS, _MOTIONS, _WHERE):
        yield " ".join(f"In this scene a {size} {thing} {motion} {where}.".split())
    for count, thing in itertools.product(("one", "two", "three", "four", "several"), _THINGS):
        yield f"There are {count} {thing}s; the events show their edges while the background keeps still."


def main(target: Path) -> None:
    """Writes the model file."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences(),
        model_writer=model,
        model_type="bpe",
        vocab_size=640,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        num_threads=1,
        minloglevel=2,
    )
    target.write_bytes(model.getvalue())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
