"""Tiny models of each family, staged."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import families

from unfuse.adapters.hf import HFAdapter
from unfuse.adapters.probe import find_language_model
from unfuse.adapters.video_llava import VideoLlavaAdapter
from unfuse.engines.eager import EagerEngine
from unfuse.staged_model import StagedModel
from unfuse.stages import Loaded


@dataclass
class Family:
    """One family's tiny model and what it takes to ask it."""

    name: str
    staged: StagedModel
    prompter: families.Built

    @property
    def adapter(self):
        return self.staged.adapter

    def prepare(self, count, question, seed=0):
        """A prompt with ``count`` frames of different sizes, or one video of as many."""
        rng = np.random.default_rng(seed)
        frames = [rng.integers(0, 256, (40 + 8 * i, 50, 3), dtype=np.uint8) for i in range(count)]
        loaded = Loaded(frames=frames, media="frames", media_sha256=f"{seed}", question=question)
        return self.staged.preprocess(loaded)


def build(name):
    torch.manual_seed(7)
    model, prompter = families.FAMILIES[name]()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            # Wide enough that other features and other words give other answers.
            scale = 1.0 if "embed_tokens" in key or "lm_head" in key else 0.12
            weight.copy_(
                torch.randn_like(weight) * scale if weight.dim() > 1 else weight + torch.randn_like(weight) * 0.1
            )
    model = model.eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    language = find_language_model(model)
    make = VideoLlavaAdapter if name == "video_llava" else HFAdapter
    adapter = make(model, prompter, "a fingerprint", language=language, takes_video=prompter.video)
    return Family(name, StagedModel(name, adapter, EagerEngine(language)), prompter)


@pytest.fixture(scope="module", params=list(families.FAMILIES))
def family(request):
    return build(request.param)
