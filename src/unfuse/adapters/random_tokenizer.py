"""A tokenizer for models of random weights: the demo's, with a family's placeholders added."""

from __future__ import annotations

import re
from typing import Any

from unfuse.stages import DEFAULT_QUESTION


def tokenizer_with(*placeholders: str) -> Any:
    """The demo tokenizer with each placeholder as one token.

    Words of the usual prompt are one token each too, as they are in the tokenizers of large models: the prompt is then
    nearly as long as theirs (634 positions where EventGPT-7b's has 636).
    """
    from tokenizers import AddedToken

    from unfuse.models.eventgpt import EventGPTProcessor
    from unfuse.models.eventgpt.prompt import build_prompt
    from unfuse.models.pretrained import from_pretrained
    from unfuse.samples.demo import demo_checkpoint

    tokenizer = from_pretrained(EventGPTProcessor, demo_checkpoint()).tokenizer
    tokenizer.add_tokens(list(placeholders), special_tokens=True)
    words = dict.fromkeys(re.findall(r" ?\b[A-Za-z']+\b", re.sub(r"<\w+>", "", build_prompt(DEFAULT_QUESTION))))
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    tokenizer.model_max_length = 1_000_000  # the models it serves have their own limits
    return tokenizer
