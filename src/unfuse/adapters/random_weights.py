"""Parts of models with random weights: known sizes, a memory check, and a tokenizer."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from unfuse.errors import DeviceError
from unfuse.stages import DEFAULT_QUESTION


@dataclass(frozen=True, slots=True)
class RandomShape:
    """A model size that can be made with random weights."""

    config: Callable[[], Any]
    parameters: int
    """Number of parameters, rounded up. They must fit into memory before anything is made."""


def require_memory(name: str, parameters: int, device: torch.device, dtype: torch.dtype) -> None:
    """Check that the weights fit into memory: otherwise the process would be killed while it makes them.

    Raises:
        DeviceError: with the free and the needed memory.
    """
    if device.type == "cuda":
        # Free the memory of earlier models that wait for garbage collection.
        gc.collect()
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = parameters * dtype.itemsize
    if free < needed:
        raise DeviceError(
            name,
            found=f"{free / 2**30:.0f} GiB free on {device}",
            expected=f"{needed / 2**30:.0f} GiB for its weights in {str(dtype).removeprefix('torch.')}",
            fix="choose a larger --device, or --dtype bfloat16",
        )


def tokenizer_with(*placeholders: str) -> Any:
    """Return the demo model's tokenizer with each placeholder as one token.

    Each word of the default prompt is one token too, as in the tokenizers of large models. So the prompt is nearly as
    long as theirs: 634 positions, against 636 for EventGPT-7b.
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
    tokenizer.model_max_length = 1_000_000  # each model has its own limit
    return tokenizer
