"""Builds the adapter of EventGPT: from a checkpoint, or at real size with random weights. See ``FamilyLoader``."""

from __future__ import annotations

from pathlib import Path
from typing import Final, cast

import torch
from transformers.utils import logging

from unfuse.adapters.eventgpt import EventGPTAdapter
from unfuse.adapters.eventgpt_preprocessor import EventGPTPreprocessor
from unfuse.adapters.random_weights import RandomShape, require_memory, tokenizer_with
from unfuse.models.eventgpt import EventChatConfig, EventChatModel
from unfuse.models.eventgpt.processing_eventgpt import load_event_processor
from unfuse.models.eventgpt.tokenizer import load_tokenizer, model_vocabulary
from unfuse.models.eventgpt.tower import resolve_tower
from unfuse.models.fingerprint import model_fingerprint, with_pixels
from unfuse.models.pretrained import from_pretrained
from unfuse.models.tensors import own_tensors


def load_folder(folder: Path, device: torch.device, dtype: torch.dtype, notes: tuple[str, ...] = ()) -> EventGPTAdapter:
    """Load a checkpoint in the published format.

    Raises:
        CheckpointError: the checkpoint is incomplete or damaged.
    """
    logging.disable_progress_bar()
    model: EventChatModel = from_pretrained(EventChatModel, folder, dtype=dtype)
    model = own_tensors(model.to(device)).eval()  # type: ignore[arg-type]  # transformers wraps `to` without its types
    preprocessor = _preprocessor(folder, cast(EventChatConfig, model.config), model.dtype)
    rows = model.config.vocab_size
    if (wanted := model_vocabulary(preprocessor.tokenizer)) != rows:
        _resize(model, wanted)
        notes = (
            *notes,
            f"embeddings resized from {rows} to {wanted} rows for the event tokens; new rows are untrained",
        )
    fingerprint = with_pixels(model_fingerprint(model), preprocessor.event_processor)
    return EventGPTAdapter(model, preprocessor, fingerprint, notes)


def preprocessor_of_folder(folder: Path, dtype: torch.dtype) -> EventGPTPreprocessor:
    """Open the preprocessor of a checkpoint, without reading its weights.

    Raises:
        CheckpointError: config, tokenizer or pixel settings are missing or damaged.
    """
    logging.disable_progress_bar()
    config = from_pretrained(EventChatConfig, folder)
    config.vision_config = config.vision_config or resolve_tower(config.mm_visual_tower, folder).vision_config
    return _preprocessor(folder, config, dtype)


def load_random(shape: str, device: torch.device, dtype: torch.dtype, seed: int = 0) -> EventGPTAdapter:
    """Make one of ``RANDOM_SHAPES`` on the device.

    Raises:
        DeviceError: the device has too little memory.
    """
    spec = RANDOM_SHAPES[shape]
    config = spec.config()
    require_memory(f"random:{shape}", spec.parameters, device, dtype)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        built = EventChatModel._from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]  # transformers' own
        model: EventChatModel = built.to(device).eval()
    model.generation_config.eos_token_id = config.eos_token_id
    notes = ("random weights: timings only",)
    preprocessor = random_preprocessor(shape, dtype)
    return EventGPTAdapter(
        model, preprocessor, with_pixels(model_fingerprint(model), preprocessor.event_processor), notes
    )


def random_preprocessor(shape: str, dtype: torch.dtype) -> EventGPTPreprocessor:
    """Return the preprocessor of one of ``RANDOM_SHAPES``."""
    config = RANDOM_SHAPES[shape].config()
    config.vision_config = resolve_tower(config.mm_visual_tower, None).vision_config
    return EventGPTPreprocessor(config, tokenizer_with(), load_event_processor("", config), dtype)


def random_config() -> EventChatConfig:
    """Return the config of EventGPT-7b: 32 layers of width 4096, CLIP ViT-L/14 at 336."""
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


RANDOM_SHAPES: Final = {"eventgpt-7b": RandomShape(random_config, 7_080_000_000)}
"""LLaMA-7B, CLIP ViT-L/14, projector and adaptor."""


def _preprocessor(folder: Path, config: EventChatConfig, dtype: torch.dtype) -> EventGPTPreprocessor:
    return EventGPTPreprocessor(config, load_tokenizer(folder, config), load_event_processor(folder, config), dtype)


def _resize(model: EventChatModel, rows: int) -> None:
    """Set new rows to the mean of the old ones, so that loading is deterministic."""
    before = model.config.vocab_size
    model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for module in (model.model.embed_tokens, model.lm_head):
            if rows > before:
                module.weight[before:] = module.weight[:before].mean(dim=0)
