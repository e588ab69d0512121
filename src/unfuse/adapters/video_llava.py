"""Video-LLaVA: eight evenly spaced frames as one video."""

from __future__ import annotations

from collections.abc import Mapping

from unfuse.adapters.hf import HFAdapter
from unfuse.stages import Prepared


class VideoLlavaAdapter(HFAdapter):
    """One loaded Video-LLaVA: a tower for images and one for videos, one projector for both."""

    takes_video = True

    def vision_calls(self, prepared: Prepared) -> Mapping[str, int]:
        """The tower of each modality once, the projector once for each."""
        image = int("pixel_values_images" in prepared.inputs)
        video = int("pixel_values_videos" in prepared.inputs)
        known = {"image_tower": image, "video_tower": video}
        return {name: known.get(name, image + video) for name in self.vision_modules()}
