"""LLaVA-1.5: the middle frame as one image."""

from __future__ import annotations

from unfuse.adapters.hf import HFAdapter


class LlavaAdapter(HFAdapter):
    """One loaded LLaVA."""

    takes_video = False
