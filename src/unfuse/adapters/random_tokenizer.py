"""A tokenizer for models of random weights: the demo's, with a family's placeholders added."""

from __future__ import annotations

from typing import Any


def tokenizer_with(*placeholders: str) -> Any:
    """The demo tokenizer with each placeholder as one token."""
    from unfuse.models.eventgpt import EventGPTProcessor
    from unfuse.samples.demo import demo_checkpoint

    tokenizer = EventGPTProcessor.from_pretrained(demo_checkpoint()).tokenizer
    tokenizer.add_tokens(list(placeholders), special_tokens=True)
    tokenizer.model_max_length = 1_000_000  # the models it serves have their own limits
    return tokenizer
