"""Train the demo model's sentencepiece tokenizer on its own dialogue, and write the file that ships.

python -m training.demo_tokenizer src/unfuse/samples/demo/tokenizer.model
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from unfuse.models.eventgpt.prompt import SYSTEM
from unfuse.samples.demo.dialogue import turns
from unfuse.samples.demo.scenes import demo_scene

_SCENES = range(10_000_000, 10_000_400)


def sentences() -> Iterator[str]:
    """Yield questions and answers about scenes that are in no other set."""
    for seed in _SCENES:
        for turn in turns(demo_scene(seed)[1]):
            yield f"USER: \n{turn.question} ASSISTANT: {turn.answer}"
    yield from [SYSTEM] * 20


def main(target: Path) -> None:
    """Write the model file."""
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
