"""Adapter of Video-LLaVA; the model gets eight evenly spaced frames as one video."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unfuse.adapters.clip_loading import clip_processor_of_folder
from unfuse.adapters.expected_work import CONFIG, clip_tower, layers
from unfuse.adapters.hf import HFAdapter
from unfuse.adapters.processors import ClipProcessor
from unfuse.measure.products import Products
from unfuse.stages import Prepared


class VideoLlavaAdapter(HFAdapter):
    """One loaded Video-LLaVA: a tower for images and one for videos, one projector for both."""

    takes_video = True

    @classmethod
    def own_processor(cls, folder: Path, config: Any) -> ClipProcessor | None:
        """Return ``ClipProcessor``, as it needs no torchvision; None if the image processor is not CLIP's."""
        return clip_processor_of_folder(folder, config)

    def vision_calls(self, prepared: Prepared) -> Mapping[str, int]:
        """Return one call of the tower of each modality, and one of the projector per modality."""
        image = int("pixel_values_images" in prepared.inputs)
        video = int("pixel_values_videos" in prepared.inputs)
        classes = {"image_tower": image, "video_tower": video}
        return {name: classes.get(name, image + video) for name in self.vision_modules()}

    def _encode_work(self, prepared: Prepared) -> tuple[Products, str]:
        config = self.model.config
        vision, width = config.vision_config, config.text_config.hidden_size
        pixels = prepared.inputs.get("pixel_values_videos")
        tower = None if pixels is None else clip_tower(vision, pixels.shape[0] * pixels.shape[1])
        if tower is None or pixels is None or "pixel_values_images" in prepared.inputs:
            return super()._encode_work(prepared)
        # Videos keep the class token of each frame.
        rows = pixels.shape[0] * pixels.shape[1] * ((vision.image_size // vision.patch_size) ** 2 + 1)
        return tower + layers(rows, (vision.hidden_size, width), (width, width)), CONFIG
