"""Adapter of Video-LLaVA; the model gets eight evenly spaced frames as one video."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unfuse.adapters.clip_loading import clip_processor_of_folder
from unfuse.adapters.hf import HFAdapter
from unfuse.adapters.processors import ClipProcessor
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
