"""Builds an EventGPT adapter: from a checkpoint folder, or at real size with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Final, cast

import torch
from transformers.utils import logging

from unfuse.adapters.eventgpt import EventGPTAdapter
from unfuse.adapters.eventgpt_front import EventGPTFront
from unfuse.adapters.memory import require_memory
from unfuse.adapters.random_tokenizer import tokenizer_with
from unfuse.models.eventgpt import EventChatConfig, EventChatModel
from unfuse.models.eventgpt.processing_eventgpt import load_event_processor
from unfuse.models.eventgpt.tokenizer import load_tokenizer, model_vocabulary
from unfuse.models.eventgpt.tower import resolve_tower
from unfuse.models.fingerprint import cached_model_fingerprint, model_fingerprint, with_pixels
from unfuse.models.pretrained import from_pretrained

_RANDOM_PARAMETERS: Final = 7_080_000_000
"""LLaMA-7B, CLIP ViT-L/14, projector and adaptor, rounded up."""


def load_folder(folder: Path, device: torch.device, dtype: torch.dtype, notes: tuple[str, ...] = ()) -> EventGPTAdapter:
    """Loads a checkpoint in the published format.

    Raises:
        CheckpointError: it is incomplete or damaged.
    """
    logging.disable_progress_bar()
    model: EventChatModel = from_pretrained(EventChatModel, folder, dtype=dtype)
    model = model.to(device).eval()  # type: ignore[arg-type]  # transformers wraps `to` without its types
    front = _front(folder, cast(EventChatConfig, model.config), model.dtype)
    rows = model.config.vocab_size
    if (wanted := model_vocabulary(front.tokenizer)) != rows:
        _resize(model, wanted)
        notes = (
            *notes,
            f"embeddings resized from {rows} to {wanted} rows for the event tokens; new rows are untrained",
        )
        fingerprint = model_fingerprint(model)
    else:
        fingerprint = cached_model_fingerprint(model, folder, dtype)
    return EventGPTAdapter(model, front, with_pixels(fingerprint, front.event_processor), notes)


def front_of_folder(folder: Path, dtype: torch.dtype) -> EventGPTFront:
    """Stages 1 and 2 of a checkpoint; its weights are not read.

    Raises:
        CheckpointError: config, tokenizer or pixel settings are missing or damaged.
    """
    logging.disable_progress_bar()
    config = from_pretrained(EventChatConfig, folder)
    config.vision_config = config.vision_config or resolve_tower(config.mm_visual_tower, folder).vision_config
    return _front(folder, config, dtype)


def load_random(device: torch.device, dtype: torch.dtype, seed: int = 0) -> EventGPTAdapter:
    """EventGPT-7b's shape with random weights, made on the device.

    Raises:
        DeviceError: the device has not the memory.
    """
    config = random_config()
    require_memory("random:eventgpt-7b", _RANDOM_PARAMETERS, device, dtype)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        built = EventChatModel._from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]  # transformers' own
        model: EventChatModel = built.to(device).eval()
    model.generation_config.eos_token_id = config.eos_token_id
    notes = ("random weights: timings only",)
    front = random_front(dtype)
    return EventGPTAdapter(model, front, with_pixels(model_fingerprint(model), front.event_processor), notes)


def random_front(dtype: torch.dtype) -> EventGPTFront:
    """Stages 1 and 2 at EventGPT-7b's shape."""
    config = random_config()
    config.vision_config = resolve_tower(config.mm_visual_tower, None).vision_config
    return EventGPTFront(config, tokenizer_with(), load_event_processor("", config), dtype)


def random_config() -> EventChatConfig:
    """EventGPT-7b's shape: 32 layers, 4096 wide, CLIP ViT-L/14 at 336."""
    return EventChatConfig(
        vocab_size=32003,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        mm_visual_tower="openai/clip-vit-large-patch14-336",
        event_feature_adaptor=True,
        spatial_temporal_encoder=True,
        mm_use_im_start_end=True,
        mm_use_im_patch_token=True,
    )


def _front(folder: Path, config: EventChatConfig, dtype: torch.dtype) -> EventGPTFront:
    return EventGPTFront(config, load_tokenizer(folder, config), load_event_processor(folder, config), dtype)


def _resize(model: EventChatModel, rows: int) -> None:
    """Gives new rows the mean of the old ones, so that loading twice gives the same model."""
    before = model.config.vocab_size
    model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for module in (model.model.embed_tokens, model.lm_head):
            if rows > before:
                module.weight[before:] = module.weight[:before].mean(dim=0)
