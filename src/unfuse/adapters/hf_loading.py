"""Builds the adapter of a Hugging Face model: from a checkpoint folder, or with random weights at a known shape."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)
from transformers.utils import logging

from unfuse.adapters.hf import HFAdapter
from unfuse.adapters.hf_front import HFFront
from unfuse.adapters.llava import LlavaAdapter
from unfuse.adapters.memory import require_memory
from unfuse.adapters.probe import find_language_model
from unfuse.adapters.prompters import ClipPrompter, ProcessorPrompter
from unfuse.adapters.video_llava import VideoLlavaAdapter
from unfuse.engines.language_model import LanguageModel
from unfuse.errors import CheckpointError, CutError, MissingPackageError
from unfuse.extras import install_command
from unfuse.models.fingerprint import cached_model_fingerprint, model_fingerprint, with_pixels
from unfuse.models.pretrained import from_pretrained

_ADAPTERS: Final[dict[str, type[HFAdapter]]] = {"llava": LlavaAdapter, "video_llava": VideoLlavaAdapter}
"""By ``model_type``: families whose prompts are made here where they see CLIP's pixels."""
_LONGEST: Final = 300
_CLIP_PROCESSORS: Final = frozenset(
    {"CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil", "LlavaImageProcessor"}
    | {"VideoLlavaImageProcessor", "VideoLlavaProcessor", "LlavaProcessor"}
)


def load_hf_folder(folder: Path, device: torch.device, dtype: torch.dtype, notes: tuple[str, ...] = ()) -> HFAdapter:
    """Loads a checkpoint of any image-text or video-text family.

    Raises:
        CheckpointError: incomplete, damaged, or of no such family.
        MissingPackageError: its processor needs a package that is not installed.
    """
    logging.disable_progress_bar()
    model = _load_model(folder, dtype).to(device).eval()
    fingerprint = cached_model_fingerprint(model, folder, dtype)
    language, uncut = _cut(model)
    if uncut:
        notes = (*notes, f"cannot be cut: {uncut}")
    prompter, video = _prompter(folder, model.config, type(model))
    fingerprint = with_pixels(fingerprint, prompter.image_processor, video=video)
    notes = (*notes, *getattr(prompter, "notes", ()))
    make = _ADAPTERS.get(model.config.model_type, HFAdapter) if isinstance(prompter, ClipPrompter) else HFAdapter
    return make(model, prompter, fingerprint, notes, language=language, uncut=uncut, takes_video=video)


def front_of_folder(folder: Path, dtype: torch.dtype) -> HFFront:
    """Stages 1 and 2 of a checkpoint; its weights are not read.

    Raises:
        CheckpointError: config or processor are missing or damaged.
        MissingPackageError: its processor needs a package that is not installed.
    """
    logging.disable_progress_bar()
    try:
        config: Any = from_pretrained(AutoConfig, folder)
        network = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            str(folder), found=f"no config of an image-text model ({_short(error)})", expected="a whole checkpoint"
        ) from None
    prompter, video = _prompter(folder, config, network)
    return HFFront(prompter, config, dtype, takes_video=video)


def _prompter(folder: Path, config: Any, network: Any) -> tuple[ClipPrompter | ProcessorPrompter, bool]:
    """What makes pixels and prompts, and whether the model is shown videos."""
    kind = config.model_type
    if kind in _ADAPTERS and (settings := _clip_settings(folder)) is not None:
        tokenizer = from_pretrained(AutoTokenizer, folder)
        return _clip_prompter(config, tokenizer, settings, _chat_template(folder)), _ADAPTERS[kind].takes_video
    processor = _processor(folder)
    video = "video" in (network.input_modalities or ()) and getattr(processor, "video_processor", None) is not None
    return ProcessorPrompter(processor, video=video), video


@dataclass(frozen=True, slots=True)
class RandomShape:
    """A shape that can be made with random weights."""

    config: Callable[[], Any]
    parameters: int
    """Rounded up; what must fit into memory before anything is made."""


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
    """LLaVA-1.5-7b's shape (llava-hf/llava-1.5-7b-hf), or the same family in miniature."""
    return LlavaConfig(vision_config=_vision(336, tiny=tiny), text_config=_text(tiny=tiny))


def video_llava_config(*, tiny: bool = False) -> VideoLlavaConfig:
    """Video-LLaVA-7b's shape (LanguageBind/Video-LLaVA-7B-hf), or the same family in miniature."""
    return VideoLlavaConfig(vision_config=_vision(224, tiny=tiny), text_config=_text(tiny=tiny))


RANDOM_SHAPES: Final = {
    "llava-1.5-7b": RandomShape(llava_config, 7_070_000_000),
    "video-llava-7b": RandomShape(video_llava_config, 7_370_000_000),
    "llava-tiny": RandomShape(lambda: llava_config(tiny=True), 1_000_000),
    "video-llava-tiny": RandomShape(lambda: video_llava_config(tiny=True), 1_000_000),
}


def load_random_hf(shape: str, device: torch.device, dtype: torch.dtype, seed: int = 0) -> HFAdapter:
    """One of ``RANDOM_SHAPES``, made on the device.

    Raises:
        DeviceError: the device has not the memory.
    """
    known = RANDOM_SHAPES[shape]
    require_memory(f"random:{shape}", known.parameters, device, dtype)
    config, prompter = _random_parts(shape)
    make: type[HFAdapter] = _ADAPTERS[config.model_type]
    network = VideoLlavaForConditionalGeneration if make.takes_video else LlavaForConditionalGeneration
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        model: Any = network._from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]  # transformers' own
    model = model.to(device).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 0
    language = find_language_model(model)
    fingerprint = with_pixels(model_fingerprint(model), prompter.image_processor, video=prompter.video)
    return make(model, prompter, fingerprint, ("random weights: timings only",), language=language)


def random_front(shape: str, dtype: torch.dtype) -> HFFront:
    """Stages 1 and 2 of one of ``RANDOM_SHAPES``."""
    config, prompter = _random_parts(shape)
    return HFFront(prompter, config, dtype, takes_video=_ADAPTERS[config.model_type].takes_video)


def _random_parts(shape: str) -> tuple[Any, ClipPrompter]:
    from unfuse.adapters.random_tokenizer import tokenizer_with

    config = RANDOM_SHAPES[shape].config()
    tokenizer = tokenizer_with("<image>", "<video>")
    config.image_token_id, config.video_token_id = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    size = config.vision_config.image_size
    settings = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    return config, _clip_prompter(config, tokenizer, settings, None)


def _short(error: BaseException) -> str:
    """One line; some errors list every class there is."""
    text = " ".join(str(error).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _cut(model: Any) -> tuple[LanguageModel | None, str | None]:
    try:
        return find_language_model(model), None
    except CutError as error:
        return None, str(error)


def _load_model(folder: Path, dtype: torch.dtype) -> Any:
    try:
        loaded: Any = from_pretrained(AutoModelForImageTextToText, folder, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = _short(error)
        raise CheckpointError(
            str(folder), found=f"no loadable model ({reason})", expected="a whole checkpoint"
        ) from None
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise CheckpointError(str(folder), found=f"{len(missing)} tensors missing ({names})", expected="all of them")
    return model


def _clip_prompter(config: Any, tokenizer: Any, settings: dict[str, Any], template: str | None) -> ClipPrompter:
    video = config.model_type == "video_llava"
    vision = config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    # The class token stays with a video (its features are not selected) and with strategy "full".
    patches += int(video or config.vision_feature_select_strategy == "full")
    return ClipPrompter(
        tokenizer,
        CLIPImageProcessorPil(**settings),
        media_token="<video>" if video else "<image>",
        patches=patches,
        video=video,
        template=template,
    )


def _clip_settings(folder: Path) -> dict[str, Any] | None:
    """Of the image processor, where it is CLIP's; None where it is another."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        settings = _json(folder / name)
        settings = settings.get("image_processor", settings)
        kind = settings.get("image_processor_type", settings.get("feature_extractor_type"))
        if kind in _CLIP_PROCESSORS:
            return {k: v for k, v in settings.items() if not k.endswith(("_type", "_class")) and k != "video_processor"}
    return None


def _chat_template(folder: Path) -> str | None:
    plain = folder / "chat_template.jinja"
    if plain.is_file():
        return plain.read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        found = _json(folder / name).get("chat_template")
        if isinstance(found, str):
            return found
    return None


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(str(path), found=f"malformed JSON ({error})", expected="an object") from None
    return value if isinstance(value, dict) else {}


def _processor(folder: Path) -> Any:
    try:
        return from_pretrained(AutoProcessor, folder)
    except ImportError as error:
        reason = _short(error)
        package = "torchvision" if "torchvision" in reason.lower() else reason
        raise MissingPackageError(
            f"processor of {folder}", found=f"no {package}", expected="what this family's processor needs",
            fix=f"run: {install_command('torchvision')}" if package == "torchvision" else None,
        ) from None  # fmt: skip
    except (OSError, ValueError, KeyError) as error:
        reason = _short(error)
        raise CheckpointError(str(folder), found=f"no loadable processor ({reason})", expected="one") from None
