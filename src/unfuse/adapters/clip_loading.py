"""Opens ``ClipProcessor`` of a LLaVA or Video-LLaVA checkpoint from its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from transformers import AutoTokenizer, CLIPImageProcessorPil, ProcessorMixin

from unfuse.adapters.chat_prompt import default_template
from unfuse.adapters.processors import ClipProcessor
from unfuse.errors import CheckpointError
from unfuse.models.pretrained import from_pretrained

_CLIP_PROCESSORS: Final = frozenset(
    {"CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil", "LlavaImageProcessor"}
    | {"VideoLlavaImageProcessor", "VideoLlavaProcessor", "LlavaProcessor"}
)


def clip_processor_of_folder(folder: Path, config: Any) -> ClipProcessor | None:
    """Return the processor of a checkpoint; None if its image processor is not CLIP's."""
    settings = _clip_settings(folder)
    if settings is None:
        return None
    tokenizer = from_pretrained(AutoTokenizer, folder)
    return clip_processor(config, tokenizer, settings, _chat_template(folder, tokenizer))


def clip_processor(config: Any, tokenizer: Any, settings: dict[str, Any], template: str | None) -> ClipProcessor:
    """Return the processor of a config of ``llava`` or ``video_llava``, with settings of the image processor."""
    video = config.model_type == "video_llava"
    vision = config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    # The class token stays with a video (its features are not selected) and with strategy "full".
    patches += int(video or config.vision_feature_select_strategy == "full")
    return ClipProcessor(
        tokenizer,
        CLIPImageProcessorPil(**settings),
        media_token="<video>" if video else "<image>",
        patches=patches,
        video=video,
        template=template,
    )


def _clip_settings(folder: Path) -> dict[str, Any] | None:
    """Return the settings of the image processor; None if it is not CLIP's."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        settings = _json(folder / name)
        settings = settings.get("image_processor", settings)
        kind = settings.get("image_processor_type", settings.get("feature_extractor_type"))
        if kind in _CLIP_PROCESSORS:
            return {k: v for k, v in settings.items() if not k.endswith(("_type", "_class")) and k != "video_processor"}
    return None


def _chat_template(folder: Path, tokenizer: Any) -> str | None:
    """Return the template of the processor's files, else the tokenizer's, as transformers finds them."""
    try:
        settings, _ = ProcessorMixin.get_processor_dict(folder)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"chat template of {folder}", found=f"{type(error).__name__} ({error})", expected="a readable template"
        ) from None
    return default_template(settings.get("chat_template") or getattr(tokenizer, "chat_template", None), str(folder))


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(str(path), found=f"malformed JSON ({error})", expected="an object") from None
    return value if isinstance(value, dict) else {}
