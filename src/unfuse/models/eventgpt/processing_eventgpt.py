"""EventGPT's processor: converts event frames and text to the model's inputs.

Pillow computes the pixels in all cases. In transformers 5 ``CLIPImageProcessor`` is the torchvision backend if
torchvision is installed; its results differ by one uint8 step.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from transformers import AutoConfig, BatchFeature, CLIPImageProcessorPil, ProcessorMixin

from unfuse.errors import CheckpointError, PromptError
from unfuse.models.eventgpt.configuration_eventgpt import EventChatConfig
from unfuse.models.eventgpt.prompt import CHAT_TEMPLATE, EVENT_TOKEN, PATCH_TOKEN, tokenize_prompt
from unfuse.models.eventgpt.tokenizer import load_tokenizer, save_tokenizer
from unfuse.models.eventgpt.tower import resolve_tower
from unfuse.models.pretrained import from_pretrained


def load_event_processor(path: str | Path, config: EventChatConfig) -> CLIPImageProcessorPil:
    """Return the image processor of a checkpoint: its own ``preprocessor_config.json``, else the tower folder's.

    Raises:
        CheckpointError: neither is found, or the file is not readable.
    """
    own = Path(path) / "preprocessor_config.json"
    try:
        settings = (
            json.loads(own.read_text(encoding="utf-8"))
            if own.is_file()
            else resolve_tower(config.mm_visual_tower, path).preprocessor
        )
        return CLIPImageProcessorPil(**{k: v for k, v in settings.items() if not k.endswith(("_type", "_class"))})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(str(own), found=error, expected="the settings of a CLIP image processor") from None


class EventGPTProcessor(ProcessorMixin):
    """Converts frames and text to ``input_ids``, ``attention_mask`` and ``pixel_values [B, F, 3, H, W]``."""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        patch_size: int = 14,
    ):
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
        if PATCH_TOKEN not in tokenizer.get_vocab():
            tokenizer.add_tokens([PATCH_TOKEN], special_tokens=True)
        self.patch_size = patch_size
        self.event_token = PATCH_TOKEN
        self.event_token_id: int = tokenizer.convert_tokens_to_ids(PATCH_TOKEN)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Self:
        """Load from the published layout; it has no preprocessor config of its own.

        ``trust_remote_code`` is accepted and has no effect: no code of a checkpoint is run.

        Raises:
            CheckpointError: a file is missing or damaged, or needs remote code.
        """
        path = pretrained_model_name_or_path
        config = kwargs.pop("config", None)
        kwargs.pop("trust_remote_code", None)
        if not isinstance(config, EventChatConfig):
            config = from_pretrained(AutoConfig, path)
        vision = config.vision_config or resolve_tower(config.mm_visual_tower, path).vision_config
        return cls(
            load_event_processor(path, config),
            load_tokenizer(path, config, **kwargs),
            patch_size=vision.patch_size,
        )

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Write ``preprocessor_config.json`` and the tokenizer; token ids stay the same."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        settings = self.image_processor.to_dict()
        settings |= {"image_processor_type": "CLIPImageProcessor", "processor_class": type(self).__name__}
        (folder / "preprocessor_config.json").write_text(
            json.dumps(settings, indent=2, default=_plain) + "\n", encoding="utf-8"
        )
        save_tokenizer(self.tokenizer, folder)
        return [str(file) for file in sorted(folder.iterdir())]

    @property
    def num_patches(self) -> int:
        """P: positions per frame, the class token included."""
        return int((self.image_processor.crop_size["height"] // self.patch_size) ** 2 + 1)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        return_tensors: str | None = None,
        padding: bool = True,
        **kwargs: Any,
    ) -> BatchFeature:
        """Process prompts of one scene each.

        Args:
            images: the frames of each prompt: a list of lists, or one flat list for one prompt.
            text: prompts with ``<event>`` at the position of the scene (or ``<ev_patch>``, once).
            return_tensors: ``"pt"``.
            padding: pad prompts to one length, on the tokenizer's side.
            **kwargs: passed to the frame processor.

        Raises:
            PromptError: the numbers of prompts and scenes differ, or scenes have different numbers of frames.
        """
        prompts = [text] if isinstance(text, str) else list(text or [])
        data: dict[str, Any] = {}
        placeholder: tuple[int, ...] = ()
        if images is not None:
            scenes = [list(scene) for scene in images] if _is_nested(images) else [_frames(images)]
            counts = {len(scene) for scene in scenes}
            if len(counts) != 1 or (prompts and len(scenes) != len(prompts)):
                raise PromptError(
                    "images",
                    found=f"{len(scenes)} scenes of {sorted(counts)} frames",
                    expected=f"{len(prompts)} scenes, one per prompt, with equal numbers of frames",
                )
            flat = [frame for scene in scenes for frame in scene]
            pixels = self.image_processor(flat, return_tensors="np", **kwargs)["pixel_values"]
            data["pixel_values"] = np.asarray(pixels).reshape(len(scenes), -1, *np.asarray(pixels).shape[1:])
            placeholder = (self.event_token_id,) * (counts.pop() + self.num_patches)
        if prompts:
            prompts = [prompt.replace(PATCH_TOKEN, EVENT_TOKEN) for prompt in prompts]
            if placeholder and any(EVENT_TOKEN not in prompt for prompt in prompts):
                raise PromptError("text", found=f"a prompt without {EVENT_TOKEN}", expected="one in each prompt")
            rows = [tokenize_prompt(prompt, self.tokenizer, placeholder=placeholder) for prompt in prompts]
            data |= self.tokenizer.pad({"input_ids": rows}, padding=padding)
        return BatchFeature(data, tensor_type=return_tensors)


def _is_nested(images: Any) -> bool:
    return isinstance(images, (list, tuple)) and len(images) > 0 and isinstance(images[0], (list, tuple))


def _frames(images: Any) -> list[Any]:
    return list(images) if isinstance(images, (list, tuple)) else [images]


def _plain(value: Any) -> Any:
    return int(value) if hasattr(value, "__int__") else dict(value)
