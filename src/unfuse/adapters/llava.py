"""Adapter of LLaVA-1.5; the model gets the middle frame as one image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unfuse.adapters.clip_loading import clip_processor_of_folder
from unfuse.adapters.hf import HFAdapter
from unfuse.adapters.processors import ClipProcessor


class LlavaAdapter(HFAdapter):
    """One loaded LLaVA."""

    takes_video = False

    @classmethod
    def own_processor(cls, folder: Path, config: Any) -> ClipProcessor | None:
        """Return ``ClipProcessor``, as it needs no torchvision; None if the image processor is not CLIP's."""
        return clip_processor_of_folder(folder, config)
