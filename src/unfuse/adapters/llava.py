"""Adapter of LLaVA-1.5; the model gets the middle frame as one image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unfuse.adapters.clip_loading import clip_processor_of_folder
from unfuse.adapters.expected_work import CONFIG, clip_tower, layers
from unfuse.adapters.hf import HFAdapter
from unfuse.adapters.processors import ClipProcessor
from unfuse.measure.products import Products
from unfuse.stages import Prepared


class LlavaAdapter(HFAdapter):
    """One loaded LLaVA."""

    takes_video = False

    @classmethod
    def own_processor(cls, folder: Path, config: Any) -> ClipProcessor | None:
        """Return ``ClipProcessor``, as it needs no torchvision; None if the image processor is not CLIP's."""
        return clip_processor_of_folder(folder, config)

    def _encode_work(self, prepared: Prepared) -> tuple[Products, str]:
        config, images = self.model.config, len(prepared.pixel_values)
        tower, selected = clip_tower(config.vision_config, images), config.vision_feature_layer
        if tower is None or not images:
            return super()._encode_work(prepared)
        vision, width = config.vision_config, config.text_config.hidden_size
        inputs = vision.hidden_size * (1 if isinstance(selected, int) else len(selected))
        patches = (vision.image_size // vision.patch_size) ** 2 + (config.vision_feature_select_strategy == "full")
        return tower + layers(images * patches, (inputs, width), (width, width)), CONFIG
