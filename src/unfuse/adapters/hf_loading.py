"""Builds the adapter of a Hugging Face model: from a checkpoint, or with random weights. See ``FamilyLoader``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    VideoLlavaConfig,
)
from transformers.utils import logging

from unfuse.adapters.clip_loading import clip_processor
from unfuse.adapters.hf import HFAdapter
from unfuse.adapters.hf_preprocessor import HFPreprocessor, Processor
from unfuse.adapters.llava import LlavaAdapter
from unfuse.adapters.processors import CheckpointProcessor, ClipProcessor
from unfuse.adapters.random_weights import RandomShape, require_memory, tokenizer_with
from unfuse.adapters.split_check import find_language_model
from unfuse.adapters.video_llava import VideoLlavaAdapter
from unfuse.engines.language_model import LanguageModel
from unfuse.errors import CheckpointError, CutError
from unfuse.models.fingerprint import model_fingerprint, with_pixels
from unfuse.models.pretrained import from_pretrained
from unfuse.models.tensors import own_tensors
from unfuse.unavailable import Unavailable

_ADAPTERS: Final[dict[str, type[HFAdapter]]] = {"llava": LlavaAdapter, "video_llava": VideoLlavaAdapter}
"""By ``model_type``: adapters other than ``HFAdapter``."""


def load_folder(folder: Path, device: torch.device, dtype: torch.dtype, notes: tuple[str, ...] = ()) -> HFAdapter:
    """Load a checkpoint of any image-text or video-text family.

    Raises:
        CheckpointError: the checkpoint is incomplete, damaged, or of another kind.
        MissingPackageError: its processor needs a package that is not installed.
    """
    logging.disable_progress_bar()
    model = own_tensors(_load_model(folder, dtype).to(device)).eval()
    fingerprint = model_fingerprint(model)
    language = _language_or_reason(model)
    if isinstance(language, Unavailable):
        notes = (*notes, f"cannot be split: {language.reason}")
    processor, video = _processor_of(folder, model.config, type(model))
    fingerprint = with_pixels(fingerprint, processor.image_processor, video=video)
    notes = (*notes, *getattr(processor, "notes", ()))
    return _adapter_class(model.config)(model, processor, fingerprint, notes, language=language, takes_video=video)


def preprocessor_of_folder(folder: Path, dtype: torch.dtype) -> HFPreprocessor:
    """Open the preprocessor of a checkpoint, without reading its weights.

    Raises:
        CheckpointError: config or processor are missing or damaged.
        MissingPackageError: its processor needs a package that is not installed.
    """
    logging.disable_progress_bar()
    try:
        config: Any = from_pretrained(AutoConfig, folder)
        network = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    except KeyError:
        found = f"a config of {type(config).__name__.removesuffix('Config')}"
        raise CheckpointError(str(folder), found=found, expected="an image-text model") from None
    processor, video = _processor_of(folder, config, network)
    return _adapter_class(config).preprocessor_class(processor, config, dtype, takes_video=video)


def _adapter_class(config: Any) -> type[HFAdapter]:
    return _ADAPTERS.get(config.model_type, HFAdapter)


def _processor_of(folder: Path, config: Any, network: Any) -> tuple[Processor, bool]:
    """Return the processor of a checkpoint, and whether the model takes videos."""
    adapter_class = _adapter_class(config)
    if (own := adapter_class.own_processor(folder, config)) is not None:
        return own, adapter_class.takes_video
    processor = from_pretrained(AutoProcessor, folder)
    video = "video" in (network.input_modalities or ()) and getattr(processor, "video_processor", None) is not None
    return CheckpointProcessor(processor, video=video), video


def _vision(size: int, *, tiny: bool) -> CLIPVisionConfig:
    if tiny:
        return CLIPVisionConfig(
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=28,
            patch_size=14,
        )
    return CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, projection_dim=768,
        image_size=size, patch_size=14,
    )  # fmt: skip


def _text(*, tiny: bool) -> LlamaConfig:
    ends: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if tiny:
        return LlamaConfig(
            vocab_size=4096, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, **ends
        )
    return LlamaConfig(vocab_size=32064, max_position_embeddings=4096, rms_norm_eps=1e-5, **ends)


def llava_config(*, tiny: bool = False) -> LlavaConfig:
    """Return the config of LLaVA-1.5-7b (llava-hf/llava-1.5-7b-hf), or of a tiny model of this family."""
    return LlavaConfig(vision_config=_vision(336, tiny=tiny), text_config=_text(tiny=tiny))


def video_llava_config(*, tiny: bool = False) -> VideoLlavaConfig:
    """Return the config of Video-LLaVA-7b (LanguageBind/Video-LLaVA-7B-hf), or of a tiny model of this family."""
    return VideoLlavaConfig(vision_config=_vision(224, tiny=tiny), text_config=_text(tiny=tiny))


RANDOM_SHAPES: Final = {
    "llava-1.5-7b": RandomShape(llava_config, 7_070_000_000),
    "video-llava-7b": RandomShape(video_llava_config, 7_370_000_000),
    "llava-tiny": RandomShape(lambda: llava_config(tiny=True), 1_000_000),
    "video-llava-tiny": RandomShape(lambda: video_llava_config(tiny=True), 1_000_000),
}


def load_random(shape: str, device: torch.device, dtype: torch.dtype, seed: int = 0) -> HFAdapter:
    """Make one of ``RANDOM_SHAPES`` on the device.

    Raises:
        DeviceError: the device has too little memory.
    """
    spec = RANDOM_SHAPES[shape]
    require_memory(f"random:{shape}", spec.parameters, device, dtype)
    config, processor = _random_parts(shape)
    network: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        model: Any = network._from_config(config, dtype=dtype)
    model = model.to(device).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 0
    language = find_language_model(model)
    fingerprint = with_pixels(model_fingerprint(model), processor.image_processor, video=processor.video)
    notes = ("random weights: timings only",)
    return _adapter_class(config)(model, processor, fingerprint, notes, language=language)


def random_preprocessor(shape: str, dtype: torch.dtype) -> HFPreprocessor:
    """Return the preprocessor of one of ``RANDOM_SHAPES``."""
    config, processor = _random_parts(shape)
    adapter_class = _adapter_class(config)
    return adapter_class.preprocessor_class(processor, config, dtype, takes_video=adapter_class.takes_video)


def _random_parts(shape: str) -> tuple[Any, ClipProcessor]:
    config = RANDOM_SHAPES[shape].config()
    tokenizer = tokenizer_with("<image>", "<video>")
    config.image_token_id, config.video_token_id = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    size = config.vision_config.image_size
    settings = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    return config, clip_processor(config, tokenizer, settings, None)


def _language_or_reason(model: Any) -> LanguageModel | Unavailable:
    try:
        return find_language_model(model)
    except CutError as error:
        return Unavailable(str(error))


def _load_model(folder: Path, dtype: torch.dtype) -> Any:
    model, report = from_pretrained(AutoModelForImageTextToText, folder, dtype=dtype, output_loading_info=True)
    missing = sorted(report["missing_keys"])
    if missing:
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise CheckpointError(str(folder), found=f"{len(missing)} tensors missing ({names})", expected="all tensors")
    return model
