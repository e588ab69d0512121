"""Model and input of the measurements."""

from __future__ import annotations

import types
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import CLIPVisionConfig

from unfuse.adapters.base import SceneInfo
from unfuse.adapters.eventgpt import EventGPTAdapter
from unfuse.adapters.eventgpt_loading import random_config
from unfuse.adapters.eventgpt_preprocessor import EventGPTPreprocessor
from unfuse.engine_choice import pick_engine
from unfuse.models.eventgpt import EventChatConfig, EventChatModel
from unfuse.models.eventgpt.prompt import EVENT_INDEX
from unfuse.staged_model import StagedModel
from unfuse.stages import Prepared, Sampling

FRAMES, NEW_TOKENS, FEW, MANY = 5, 46, 2, 34
IDS_BEFORE, IDS_AFTER, QUESTION_IDS = 35, 19, 24
"""Text ids before the scene, after it, and after it in a second question."""
GREEDY = Sampling(ignore_eos=True)


@dataclass(frozen=True)
class Case:
    """Model and input: EventGPT-7B in bfloat16 on the GPU, or a tiny float32 model on the CPU."""

    smoke: bool
    adapter: EventGPTAdapter
    prepared: Prepared
    batches: tuple[int, int]
    compiler: dict[str, Any]

    @property
    def model(self) -> EventChatModel:
        """The Hugging Face model."""
        model: EventChatModel = self.adapter.model
        return model

    @property
    def length(self) -> int:
        """Positions of the prompt."""
        return self.prepared.text_tokens + self.prepared.media_tokens

    @property
    def position_bytes(self) -> int:
        """Bytes of keys and values of one position."""
        config = self.model.config
        size = 2 * config.num_key_value_heads * config.head_dim * self.adapter.dtype.itemsize
        return int(config.num_hidden_layers * size)


def make_case(smoke: bool) -> Case:
    """Create the model on its device, and noise as its input."""
    config = random_config()
    if smoke:
        tower = CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=2, image_size=28,
            patch_size=14,
        )  # fmt: skip
        config = EventChatConfig(
            vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            bos_token_id=1, eos_token_id=2, pad_token_id=0, event_feature_adaptor=True, vision_config=tower,
        )  # fmt: skip
    device, dtype = (torch.device("cpu"), torch.float32) if smoke else (torch.device("cuda", 0), torch.bfloat16)
    with device:
        torch.manual_seed(0)
        built = EventChatModel._from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]  # transformers' own
        model: EventChatModel = built.to(device).eval()
        side = model.config.vision_config.image_size
        pixels = torch.randn(FRAMES, 3, side, side).to(dtype)
    model.generation_config.eos_token_id = config.eos_token_id
    no_text = types.SimpleNamespace(decode=lambda *_, **__: "")
    config.vision_config = model.config.vision_config
    adapter = EventGPTAdapter(model, EventGPTPreprocessor(config, no_text, None, dtype), fingerprint="random")
    compiler: dict[str, Any] = {"backend": "eager"} if smoke else {"mode": "reduce-overhead"}
    prepared = make_prepared(adapter, make_ids(0, IDS_AFTER, config.vocab_size), pixels)
    compiler |= {"fullgraph": True, "dynamic": False}
    return Case(smoke, adapter, prepared, (2, 3) if smoke else (16, 64), compiler)


def make_ids(seed: int, after: int, vocabulary: int) -> tuple[int, ...]:
    """Return a prompt's ids: equal before the scene, different from the first id after it."""
    generator, most = torch.Generator(), vocabulary - 8
    head = torch.randint(5, most, (IDS_BEFORE,), generator=generator.manual_seed(10**6)).tolist()
    rest = torch.randint(5, most, (after - 1,), generator=generator.manual_seed(seed)).tolist()
    return (*head, EVENT_INDEX, 5 + seed, *rest)


def make_prepared(adapter: EventGPTAdapter, ids: tuple[int, ...], pixels: torch.Tensor) -> Prepared:
    """Return the output of ``preprocess``, without text or pictures."""
    scene = SceneInfo(media_sha256="0" * 64, num_frames=FRAMES, media_tokens=FRAMES + adapter.model.num_patches)
    return adapter.upload(replace(adapter.preprocessor.prepared(ids, scene, ""), pixel_values=pixels))


def staged(adapter: EventGPTAdapter, name: str) -> StagedModel:
    """Return the model under an engine; ``eager`` replaces ``graphed`` in the smoke run only."""
    engine, notes, *_ = pick_engine(name, adapter)
    if engine.name != name and adapter.device.type == "cuda":
        raise SystemExit(f"engine {name} is not available: {'; '.join(notes)}")
    return StagedModel("random", adapter, engine, notes)
